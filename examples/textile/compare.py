"""What each choice of ``inspect.yaml`` is worth: one table, one choice changed per row.

    python examples/textile/compare.py .cache/efficientnet-lite0 [--train 200] [--tested 100] [--only NAME...]

Every row makes its own memory bank from the same good pictures and scores the same test pictures through the
engine. The defects tested here are the last of each kind by name; takes about 15 s of CPU per row.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

CHOICES: dict[str, dict[str, Any]] = {
    "as in inspect.yaml": {},
    "border kept": {"border": 0},
    "not whitened": {"whiten": False},
    "whole picture not looked at": {"whole": ()},
    "neighbourhood 8": {"neighbourhood": 8},
    "neighbourhood 16": {"neighbourhood": 16},
    "neighbourhood 24": {"neighbourhood": 24},
    "300 patches": {"patches": 300},
    "3000 patches": {"patches": 3000},
    "stages 1 and 2": {"stages": (1, 2)},
    "stages 1 and 3": {"stages": (1, 3)},
    "stage 2": {"stages": (2,)},
    "stages 3 and 5 (as PatchCore on a ResNet)": {"stages": (3, 5)},
    "stretched to 256": {"size": 256},
    "stretched to 320": {"size": 320},
    "stretched to 384": {"size": 384},
}
DEFAULT = {"stages": (1,), "neighbourhood": 12, "grid": 8, "border": 1, "patches": 1000, "whole": (1,)}
ASKED = 0.05


def main() -> None:
    """Print the table as Markdown."""
    import conformal_clip_data

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--tested", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=list(CHOICES))
    options = parser.parse_args()
    root = Path(conformal_clip_data.__file__).parent / "data" / "textile_images" / "simulated"
    kinds = {label: sorted((root / label).glob("*.jpg")) for label in ("nominal", "local", "global")}
    train = kinds["nominal"][: options.train]
    tested = {label: paths[-options.tested :] for label, paths in kinds.items()}
    print("| choice | AUROC local | AUROC global | caught at 5 % local | global | ms a picture | kB |")
    print("|---|---|---|---|---|---|---|")
    for name in options.only:
        print(
            f"| {name} | " + " | ".join(row(options.weights, CHOICES[name], train, tested)) + " |", flush=True
        )


def row(weights: Path, choice: dict[str, Any], train: list[Path], tested: dict[str, list[Path]]) -> list[str]:
    """The columns of one choice."""
    import numpy as np

    from compile.anomaly.areas import area
    from compile.anomaly.build import build_memory
    from compile.anomaly.features import feature_graph
    from compile.onnx.files import write_model
    from compile.onnx.vision_export import read_config, read_weights
    from compile.recipe.vision import Memory
    from models.engines.onnx_files import EncoderFiles
    from models.engines.onnx_vision import OnnxVision
    from models.manifest import AnomalyFacts, Engine, ImageInput

    config = read_config(weights)
    chosen = dict(choice)
    size = chosen.pop("size", None)
    shape: dict[str, Any] = (
        {"width": size, "height": size}
        if size
        else {"width": 248, "height": 248, "resize": "shorter-side", "resize_to": 250}
    )
    image = ImageInput(**shape, mean=config.mean, std=config.std)
    memory = Memory.model_validate(DEFAULT | chosen)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, grid = feature_graph(read_weights(weights), config, image.width, image.height, memory)
        write_model(model, folder / "features.onnx")
        build_memory(
            folder / "features.onnx", grid, train, image, memory, folder, 10**7, 1, lambda done, note: None
        )
        facts = AnomalyFacts(threshold=1.0, false_reject_rate=ASKED, calibrated_on=0)
        engine = OnnxVision(
            EncoderFiles(folder / "model.onnx", Engine(task="inspect", image=image, anomaly=facts))
        )
        began = time.perf_counter()
        scores = {
            label: [found.score for path in paths for found in engine.inspect([path.read_bytes()])]
            for label, paths in tested.items()
        }
        spent = time.perf_counter() - began
        engine.close()
        size_kb = (folder / "model.onnx").stat().st_size / 1000
    good = scores.pop("nominal")
    limit = np.quantile(good, 1 - ASKED)
    areas = [f"{area(good, defects).value:.3f}" for defects in scores.values()]
    caught = [f"{(np.array(defects) > limit).mean():.0%}" for defects in scores.values()]
    pictures = sum(map(len, tested.values()))
    return [*areas, *caught, f"{1000 * spent / pictures:.1f}", f"{size_kb:.0f}"]


if __name__ == "__main__":
    main()
