"""Samples from generators: `generators` finds generators by name, folder or label, and draws images from them;
`sample` writes such images to files, by the thousand; `export` writes generators themselves, as ONNX files.

The classifier, evaluation and the public API use `generators`, too.
"""
