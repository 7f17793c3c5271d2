"""Builtins: compiled code that Python calls as it calls its own functions, in a fifth of the time that ctypes takes.

Invariant: the objects of a call live until it is over, and the code reads no more than their places; the GIL is free
meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from core.accel import objects

_FASTCALL = 0x80
"""METH_FASTCALL: arguments come as an array of objects and their number."""

_GLUE = """
@message = private constant [{length} x i8] c"{message}\\00"
@PyExc_TypeError = external global ptr

declare i32 @compiled(ptr, ptr, ptr, ptr, i64)
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare void @PyErr_SetString(ptr, ptr)
declare ptr @PyBool_FromLong(i64)

define ptr @builtin(ptr %owner, ptr %objects, i64 %count) {{
  %taken = alloca i64
  %error = alloca ptr
  %state = call ptr @PyEval_SaveThread()
  call i32 @compiled(ptr %taken, ptr %error, ptr %owner, ptr %objects, i64 %count)
  call void @PyEval_RestoreThread(ptr %state)
  %number = load i64, ptr %taken
  %refused = icmp eq i64 %number, 0
  br i1 %refused, label %refuse, label %done
refuse:
  %kind = load ptr, ptr @PyExc_TypeError
  call void @PyErr_SetString(ptr %kind, ptr @message)
  ret ptr null
done:
  %result = call ptr @PyBool_FromLong(i64 1)
  ret ptr %result
}}
"""
"""From Python's convention (``PyObject *f(PyObject *self, PyObject **arguments, Py_ssize_t count)``) to numba's."""


class _Definition(ctypes.Structure):
    """PyMethodDef of Python's C interface."""

    _fields_ = (("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int),
                ("text", ctypes.c_char_p))


class Builtin:
    """Compiled code for Python.

    Parameters
    ----------
    name : of the function
    address : of code of numba's convention for ``int64 f(owner, objects, count)``: pointers to an object and to the
        first of an array of objects; 0 refuses them
    refusal : what the TypeError then says
    """

    def __init__(self, name: str, address: int, refusal: str) -> None:
        message = "".join(character if character not in '"\\' else f"\\{ord(character):02x}" for character in refusal)
        glue = _GLUE.format(message=message, length=len(refusal) + 1)
        function = objects.link_text(glue, "builtin", {"compiled": address})
        self._definition = _Definition(name.encode(), function, _FASTCALL, None)

    def of(self, owner: object, needed: object) -> Callable[..., bool]:
        """The function that passes this owner before its arguments, which it takes by position.

        Parameters
        ----------
        needed : lives as long as the function
        """
        function: Callable[..., bool] = _new(ctypes.byref(self._definition), owner, needed)
        return function


_new = ctypes.pythonapi.PyCFunction_NewEx
_new.argtypes, _new.restype = (ctypes.c_void_p, ctypes.py_object, ctypes.py_object), ctypes.py_object
