"""A quantized model's folder: `config.json`, `model.safetensors`, and `quantization.json` that says what lies how.

A matrix lies as NAME.codes and NAME.scales (infer/quantize.py says what they mean), any other weight under its name.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from herd.artifact import canonical_json
from herd.console import HerdError
from herd.infer.quantize import GROUP, SCHEMES, Int8Embedding, Matrix, QuantizedLinear, Scheme, hollow, install, kinds
from herd.model.config import ModelConfig
from herd.model.formats.native import WEIGHTS, read_config, tensor_shapes
from herd.model.formats.weights import read_json, read_tensors, write_tensors
from herd.model.transformer import Transformer

SCHEMA = 1
NOTE = "quantization.json"


def save_quantized(folder: Path, model: Transformer, scheme: Scheme) -> None:
    """Write a model of `quantize`. Raises OSError where the disk is full."""
    config, tensors = model.config, {}
    for name in tensor_shapes(config):
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, Int8Embedding):
            module = module.linear
        if isinstance(module, QuantizedLinear):
            tensors[f"{name}.codes"], tensors[f"{name}.scales"] = (part.cpu().contiguous() for part in module.matrix)
        else:
            tensors[name] = model.get_parameter(name).detach().cpu()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(canonical_json(config.to_dict(), indent=1) + "\n")
    write_tensors(folder / WEIGHTS, tensors)
    note = {"schema": SCHEMA, "scheme": scheme, "group": GROUP, "matrices": kinds(config, scheme)}
    (folder / NOTE).write_text(json.dumps(note, indent=1) + "\n")


def is_quantized(folder: Path) -> bool:
    return (folder / NOTE).is_file()


def load_quantized(folder: Path) -> Transformer:
    """The model of a folder, on the CPU. Raises HerdError naming a file or tensor that is not as it must be."""
    where = folder / WEIGHTS
    config, note, tensors = read_config(folder / "config.json"), read_json(folder / NOTE), read_tensors(where)
    scheme = note.get("scheme")
    if note.get("schema") != SCHEMA or scheme not in SCHEMES or note.get("group") != GROUP:
        raise HerdError(
            f"{folder / NOTE}: not what this version reads; expected schema {SCHEMA}, scheme one of "
            f"{', '.join(SCHEMES)}, group {GROUP}"
        )
    how, shapes = kinds(config, scheme), tensor_shapes(config)
    expected = _expected(config, how)
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    for problem, names in (("missing", missing), ("unknown", unknown)):
        if names:
            raise HerdError(f"{where}: {problem} tensor {', '.join(sorted(names)[:3])}")
    for name, (shape, dtype) in expected.items():
        found = tensors[name]
        if tuple(found.shape) != shape or (dtype is not None and found.dtype != dtype):
            raise HerdError(f"{where}: {name} is {found.dtype} {tuple(found.shape)}; expected {dtype or ''} {shape}")
    matrices = {name: Matrix(tensors[f"{name}.codes"], tensors[f"{name}.scales"]) for name in how}
    kept = {name: tensors[name] for name in shapes if name not in how}
    return install(hollow(config, kept), matrices, how)


def _expected(config: ModelConfig, how: dict[str, Scheme]) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
    """Shape and dtype of every tensor; None: any float."""
    expected: dict[str, tuple[tuple[int, ...], torch.dtype | None]] = {}
    for name, shape in tensor_shapes(config).items():
        if name not in how:
            expected[name] = (tuple(shape), None)
            continue
        rows, width = shape
        if how[name] == "int4":
            expected[f"{name}.codes"] = ((rows, width // 2), torch.uint8)
            expected[f"{name}.scales"] = ((rows, width // GROUP), torch.bfloat16)
        else:
            codes = torch.float8_e4m3fn if how[name] == "fp8" else torch.int8
            expected[f"{name}.codes"], expected[f"{name}.scales"] = ((rows, width), codes), ((rows, 1), torch.float32)
    return expected
