"""ONNX files as programs: read as data, node by node, from a list of operators."""
