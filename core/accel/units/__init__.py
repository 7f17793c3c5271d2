"""Units that multiply narrow elements: one file for each, which has all the vector code that is the unit's own.

A unit is a module that has, for kernels,

    configure(width), release()     what a thread does before its first product, of chunks of so many bytes, and after
                                    its last
    multiply(block, target)         a function that computes one register block of sums (see `narrow.multiply`)
    copy_runs(block)                a function that copies elements that lie beside each other, for some rows: it is
                                    called ``copy_runs(a, offsets, rows, shift, target, stride, valid, count)``, and
                                    row i gets `count` elements at ``target + i * stride``: `valid` from ``a +
                                    offsets[i] + shift`` and then zeros, and up to 64 bytes of any value behind them
    store_rows(block, rounds)       a function that puts sums in their place (see `narrow.store_rows`), rounded to
                                    bfloat16 if `rounds`

where `block` is a `chips.NarrowBlock` and `target` the element type of out.

A micro-kernel for a new chip is one file here, such as ``neon.py``. Where its sums lie in vector registers, the file
derives `narrow.Products`, which splits words of A and B into what the chip multiplies and adds products to sums, and
takes the rest from `vectors`; a chip with registers of another kind writes `multiply` itself, as `tiles` does. The
chip's row of `chips.CHIPS` then names the file as its unit, for each element type and with the feature of the processor
that it needs; the register block is the chip's, unless `chips` gives the unit one of its own. `tests/accel/test_units`
holds the file to this page, and `tests/accel/test_narrow` multiplies with it wherever the chip allows.

Invariant: nothing outside of a unit's file and of `chips` depends on which unit it is. The text of a kernel imports its
unit and no other one, so that a change of one leaves the code of the others in the store.
"""
