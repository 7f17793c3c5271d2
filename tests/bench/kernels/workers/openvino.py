"""Worker: OpenVINO on the CPU, with the models of `onnx_models`.

For bfloat16 it takes the float32 model and converts within, as its users do.
"""

from __future__ import annotations

from typing import Any

import openvino

from tests.bench.kernels.worker import Call, Work, serve, threads
from tests.bench.kernels.workers.onnx_models import model


class OpenVino:
    """See `worker.Framework`."""

    def __init__(self) -> None:
        self._core = openvino.Core()

    def versions(self) -> dict[str, str]:
        return {"openvino": openvino.__version__}

    def build(self, work: Work) -> dict[str, Call]:
        content, inputs = model(work)
        precision = "bf16" if work.get("dtype") == "bf16" else "f32"
        compiled = self._core.compile_model(self._core.read_model(content), "CPU", {
            "INFERENCE_NUM_THREADS": threads(), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision})
        request = compiled.create_infer_request()
        for name, array in inputs.items():
            request.set_tensor(name, openvino.Tensor(array))  # a copy: the request does not keep the array alive
        quantised = work.get("dtype") == "int8"

        def call() -> Any:
            request.infer()
            return () if quantised else (request.get_output_tensor(0).data,)

        return {"request": call}

    def values(self, result: Any) -> list[Any]:
        return list(result)


if __name__ == "__main__":
    serve(OpenVino)
