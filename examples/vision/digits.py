"""scikit-learn's handwritten digits (1,797 scans of 8 x 8 grey values, UCI) as a folder of PNGs per label.

python examples/vision/digits.py FOLDER
"""

import argparse
from pathlib import Path


def write_digits(folder: Path, each: int | None = None, start: int = 0, stop: int | None = None) -> Path:
    """Write ``folder/<digit>/<number>.png``, at most ``each`` of a digit; returns ``folder``.

    Only the scans from number ``start`` to before ``stop``, in the order of the data set.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    counts: dict[int, int] = {}
    for number, (values, label) in list(enumerate(zip(pixels, labels, strict=True)))[start:stop]:
        counts[label] = counts.get(label, 0) + 1
        if each is None or counts[label] <= each:
            target = folder / str(label) / f"{number:04}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            grey = (values.reshape(8, 8) * 255 / 16).round().astype(np.uint8)
            Image.fromarray(grey).save(target)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where a folder per digit is written")
    print(write_digits(parser.parse_args().folder))
