"""Vision models on ONNX Runtime: classification, and inspection of parts.

Owns how a picture becomes the graph's input as the release says, and what its outputs mean. The graph takes
one input, float32 [n, 3, height, width]. A classifier gives logits [n, classes]; an anomaly model gives
``score`` [n] and ``heat_map`` [n, rows, columns], where more means less like a good part. Refuses pictures
that would decode to more pixels than are allowed, before they are decoded. One thread owns an engine. Pillow
and numpy are imported when an engine is made.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from models.engines.base import EncoderFacts, Inspection
from models.engines.onnx_files import EncoderFiles
from models.engines.onnx_session import OnnxSession, OnnxSettings, softmax
from models.errors import EngineError, InvalidImage
from models.manifest import ImageInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
"""What is decoded. Other decoders of Pillow are never reached."""

MAX_PROPORTION = 20
"""How much longer than wide a picture may be when its proportions are kept: the rest is cut away anyway."""

MAX_BATCH_BYTES = 128 << 20
"""Of pixels as float32 that the graph is given at once; a batch of large inputs is smaller."""

Box = tuple[float, float, float, float]


class OnnxVision:
    """An image classifier or an anomaly model. Implements ``Classify`` or ``Inspect``, as its task is.

    Raises ``UnsafeFile`` for files that are not sound, ``EngineError`` when they do not fit each other.
    """

    def __init__(self, files: EncoderFiles, settings: OnnxSettings = OnnxSettings()) -> None:
        import numpy as np

        needs = files.engine
        if needs.task not in ("classify-image", "inspect") or needs.image is None:
            raise EngineError(f"{files.model.name} is no vision model: its task is {needs.task}")
        self._image = needs.image
        self._task = needs.task
        self._settings = settings
        self._threshold = needs.anomaly.threshold if needs.anomaly is not None else None
        self._session = OnnxSession(
            files.model, settings.threads, settings.device, files.through_tensorrt, settings.engine_cache
        )
        fitting = max(1, MAX_BATCH_BYTES // (12 * needs.image.width * needs.image.height))
        self._input, self._batch = _input_of(self._session, needs.image, min(settings.batch, fitting))
        if self._task == "inspect":
            self._outputs = ["score", "heat_map"]
            missing = [name for name in self._outputs if name not in self._session.outputs]
            if missing:
                raise EngineError(f"{files.model.name} has no output {' and no '.join(map(repr, missing))}")
        else:
            self._outputs = [self._session.output(("logits",), 2)]
        blank = np.zeros((self._batch, 3, needs.image.height, needs.image.width), dtype=np.float32)
        first = self._session.run({self._input: blank}, self._outputs)[0]  # shows that it runs at all
        if self._task == "classify-image" and first.shape != (self._batch, len(needs.labels)):
            raise EngineError(
                f"{files.model.name} answers {list(first.shape)}; {len(needs.labels)} classes have labels"
            )
        self.facts = EncoderFacts(
            task=self._task,
            name=files.name,
            parameters=self._session.model.parameters,
            file_bytes=self._session.file_bytes,
            labels=needs.labels,
            threshold=self._threshold,
        )

    def classify(self, inputs: Sequence[str] | Sequence[bytes]) -> "npt.NDArray[np.float32]":
        """See ``Classify``."""
        import numpy as np

        if self._task != "classify-image":
            raise EngineError(f"this model is made to {self._task}, not to classify")
        images = [data for data in inputs if isinstance(data, bytes)]
        if len(images) != len(inputs):
            raise EngineError("an image classifier was given texts")
        rows = [np.empty((0, len(self.facts.labels)), dtype=np.float32)]
        for start in range(0, len(images), self._batch):
            pixels = [
                read_picture(data, self._image, self._settings.max_pixels)[0]
                for data in images[start : start + self._batch]
            ]
            rows.append(softmax(self._run(pixels)[0]))
        return np.concatenate(rows)

    def inspect(self, images: Sequence[bytes]) -> list[Inspection]:
        """See ``Inspect``."""
        if self._task != "inspect" or self._threshold is None:
            raise EngineError(f"this model is made to {self._task}, not to inspect")
        found: list[Inspection] = []
        for start in range(0, len(images), self._batch):
            read = [
                read_picture(data, self._image, self._settings.max_pixels)
                for data in images[start : start + self._batch]
            ]
            scores, heats = self._run([pixels for pixels, _ in read])
            scores, heats = scores.reshape(len(scores), -1), heats.reshape(len(heats), *heats.shape[-2:])
            if scores.shape[1] != 1 or len(heats) != len(read):
                raise EngineError(f"the model gives {scores.shape[1]} scores for each picture")
            for (_, region), score, heat in zip(read, scores[:, 0].tolist(), heats, strict=True):
                found.append(
                    Inspection(
                        score=score,
                        is_defect=score >= self._threshold,
                        threshold=self._threshold,
                        heat_map=self._spread(heat),
                        region=region,
                    )
                )
        return found

    def close(self) -> None:
        """Free the weights. Safe to call twice."""
        self._session.close()

    def _run(self, pixels: "Sequence[npt.NDArray[np.float32]]") -> "list[npt.NDArray[np.float32]]":
        """One batch, filled up with the last picture where the graph takes no smaller one."""
        import numpy as np

        batch = np.stack(pixels)
        fixed = isinstance(self._session.inputs[self._input].shape[0], int)
        least = self._batch if fixed else self._session.sizes(0)[0]
        if len(batch) < least:
            batch = np.concatenate([batch, np.repeat(batch[-1:], least - len(batch), axis=0)])
        return [
            array[: len(pixels)] if array.ndim else array.reshape(1)
            for array in self._session.run({self._input: batch}, self._outputs)
        ]

    def _spread(self, heat: "npt.NDArray[np.float32]") -> "npt.NDArray[np.float32]":
        """A heat map at the size of the model's input."""
        import numpy as np
        from PIL import Image

        size = (self._image.width, self._image.height)
        return np.asarray(Image.fromarray(np.ascontiguousarray(heat)).resize(size, Image.Resampling.BILINEAR))


def read_picture(data: bytes, image: ImageInput, max_pixels: int) -> "tuple[npt.NDArray[np.float32], Box]":
    """A picture as the graph takes it, [3, height, width], and which part of the picture that is.

    Training reads pictures through here too. Raises ``InvalidImage``.
    """
    import numpy as np

    picture, region = _fit(decode(data, max_pixels), image)
    values = np.array(picture, dtype=np.float32)
    values /= 255
    values -= np.array(image.mean, dtype=np.float32)
    values /= np.array(image.std, dtype=np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32), region


def decode(data: bytes, max_pixels: int) -> "Image":
    """An encoded picture as RGB, upright. Raises ``InvalidImage``; what is too large is never decoded."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise InvalidImage(
                    f"a picture of {width} x {height} pixels; at most {max_pixels} are decoded"
                )
            if picture.mode[0] in "IF":
                raise InvalidImage(f"a picture of more than 8 bits a channel (mode {picture.mode})")
            upright = ImageOps.exif_transpose(picture)
            return upright.convert("RGB")
    except UnidentifiedImageError as error:
        raise InvalidImage(f"a picture is none of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise InvalidImage(f"a picture of too many pixels; at most {max_pixels} are decoded") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        TypeError,
        IndexError,
        KeyError,
        ArithmeticError,
    ) as error:
        # Pillow's decoders raise what they meet; SyntaxError is its word for a broken PNG.
        raise InvalidImage(f"a picture cannot be decoded: {str(error)[:200]}") from error


def _fit(picture: "Image", image: ImageInput) -> "tuple[Image, Box]":
    """The picture at the size of the input, and which part of it that shows."""
    from PIL.Image import Resampling

    method = Resampling.BICUBIC if image.interpolation == "bicubic" else Resampling.BILINEAR
    width, height = picture.size
    if image.resize_to is None:
        return picture.resize((image.width, image.height), method), (0.0, 0.0, float(width), float(height))
    if max(width, height) > MAX_PROPORTION * min(width, height):
        raise InvalidImage(f"a picture of {width} x {height} pixels, of which nearly all would be cut away")
    scale = image.resize_to / min(width, height)
    scaled = (max(image.width, int(width * scale)), max(image.height, int(height * scale)))
    left, top = round((scaled[0] - image.width) / 2), round((scaled[1] - image.height) / 2)
    box = (left, top, left + image.width, top + image.height)
    region = (box[0] / scale, box[1] / scale, min(box[2] / scale, width), min(box[3] / scale, height))
    return picture.resize(scaled, method).crop(box), region


def _input_of(session: OnnxSession, image: ImageInput, batch: int) -> tuple[str, int]:
    """The graph's one input and how many pictures it takes at once. Raises ``EngineError``."""
    if len(session.inputs) != 1:
        raise EngineError(f"{session.name} takes {sorted(session.inputs)}; one input of pixels is expected")
    ((name, value),) = session.inputs.items()
    wanted = (3, image.height, image.width)
    fits = len(value.shape) == 4 and all(
        not isinstance(size, int) or size == want for size, want in zip(value.shape[1:], wanted, strict=True)
    )
    if not fits or value.type != "float32":
        raise EngineError(
            f"{session.name} takes {value.type} {list(value.shape)}; float32 [n, 3, {image.height}, "
            f"{image.width}] is expected"
        )
    fixed = value.shape[0]
    return name, fixed if isinstance(fixed, int) else min(batch, session.sizes(0)[1])
