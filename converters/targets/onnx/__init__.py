"""ONNX graphs and the folder around them."""
