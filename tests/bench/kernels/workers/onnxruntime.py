"""Worker: onnxruntime on the CPU, with the models of `onnx_models`."""

from __future__ import annotations

from typing import Any

import onnxruntime

from tests.bench.kernels.worker import Call, Unsupported, Work, serve, threads
from tests.bench.kernels.workers.onnx_models import model


class OnnxRuntime:
    """See `worker.Framework`."""

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": onnxruntime.__version__}

    def build(self, work: Work) -> dict[str, Call]:
        if work.get("dtype") == "bf16":
            raise Unsupported("onnxruntime has no bfloat16 on the CPU")
        content, inputs = model(work)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads(), 1
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        call = _silent if work.get("dtype") == "int8" else _plain
        return {"session": call(session, inputs)}

    def values(self, result: Any) -> list[Any]:
        return list(result)


def _plain(session: Any, inputs: dict[str, Any]) -> Call:
    return lambda: session.run(None, inputs)


def _silent(session: Any, inputs: dict[str, Any]) -> Call:
    """Outputs are cut to 8 bits, so they are not compared."""
    return lambda: session.run(None, inputs)[:0]


if __name__ == "__main__":
    serve(OnnxRuntime)
