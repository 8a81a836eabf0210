"""ONNX Runtime: ONNX text and vision towers, on the devices of its execution providers."""
