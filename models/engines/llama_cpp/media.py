"""Pictures and sound for a model that writes text: llama.cpp's libmtmd over a projector file.

Owns the projector (``mmproj*.gguf``), how an encoded picture or recording becomes pieces of embeddings, and
the ids that stand for these among the tokens of a prompt. Refuses files that ``models.gguf`` has not passed,
what Pillow and FFmpeg do not decode (libmtmd's own decoders are never reached), and projectors for models
whose positions have several axes (M-RoPE): here a position is the index of a token. One thread owns a
projector.
"""

import ctypes
import hashlib
import importlib.util
import itertools
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.engines.base import Media, MediaKind
from models.engines.llama_cpp.library import keep_errors, last_error
from models.engines.onnx_vision import MAX_PROPORTION, decode
from models.engines.whisper import decode_audio
from models.errors import EngineError, InvalidImage, UnsupportedRequest
from models.gguf import check_projector

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_PIXELS = 50_000_000
"""Of one picture, before it is decoded."""
MAX_SECONDS = 600.0
"""Of one recording."""
_FIRST_ID = -2
"""Ids of media lie from here downwards: tokens are not negative, and -1 is none."""


@dataclass(eq=False, slots=True)
class Piece:
    """A tile of a picture or a part of a recording: an embedding for each of ``ids``, from ``start`` on.

    ``whole``: they attend to each other in both directions, so they are computed in one batch.
    """

    ids: list[int]
    whole: bool
    chunk: Any
    owner: "_Chunks"
    start: int = 0
    embeddings: "npt.NDArray[np.float32] | None" = None


@dataclass(frozen=True, slots=True)
class Shown:
    """What a picture or recording becomes: the ids of tokens and of pieces, in order, and the pieces."""

    ids: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)


class Projector:
    """Loaded beside ``model``, which must outlive it. ``width``: numbers in an embedding of that model.

    Raises ``UnsafeFile`` for a file that is not sound, ``EngineError`` when it does not fit the model.
    """

    def __init__(self, path: Path, lib: Any, model: Any, threads: int, gpu: bool) -> None:
        check_projector(path)
        self._mtmd = mtmd = _library(lib)
        parameters = mtmd.mtmd_context_params_default()
        parameters.use_gpu, parameters.n_threads, parameters.print_timings = gpu, threads, False
        self.width: int = lib.llama_model_n_embd_inp(model)
        self._context = mtmd.mtmd_init_from_file(str(path).encode(), model, parameters)
        if not self._context:
            raise EngineError(f"{path.name} does not fit the model: {last_error()}")
        if mtmd.mtmd_decode_use_mrope(self._context):
            self.close()
            raise EngineError(f"{path.name} is for a model with M-RoPE positions, which is not supported")
        sees, hears = mtmd.mtmd_support_vision(self._context), mtmd.mtmd_support_audio(self._context)
        can_decode_audio = importlib.util.find_spec("av") is not None  # the extra edge-speech
        self.takes: tuple[MediaKind, ...] = (
            *(("image",) if sees else ()),
            *(("audio",) if hears and can_decode_audio else ()),
        )

    def read(self, media: Media) -> Shown:
        """Decode, and cut into pieces. Raises ``InvalidImage``, ``InvalidAudio``, ``UnsupportedRequest``."""
        if media.kind not in self.takes:
            raise UnsupportedRequest(f"this model takes no {media.kind}")
        bitmap, digest = self._image(media.data) if media.kind == "image" else self._audio(media.data)
        try:
            return self._cut(bitmap, digest)
        finally:
            self._mtmd.mtmd_bitmap_free(bitmap)

    def embed(self, piece: Piece) -> "npt.NDArray[np.float32]":
        """float32 [ids, ``width``], computed once. Raises ``EngineError``."""
        import numpy as np

        if piece.embeddings is None:
            if self._mtmd.mtmd_encode_chunk(self._context, piece.chunk):
                raise EngineError(f"a picture or recording cannot be encoded: {last_error()}")
            found = self._mtmd.mtmd_get_output_embd(self._context)
            piece.embeddings = np.ctypeslib.as_array(found, shape=(len(piece.ids), self.width)).copy()
        return piece.embeddings

    def close(self) -> None:
        """Free the weights. Safe to call twice."""
        if self._context:
            self._mtmd.mtmd_free(self._context)
            self._context = None

    def _image(self, data: bytes) -> tuple[Any, bytes]:
        picture = decode(data, MAX_PIXELS)
        pixels, (width, height) = picture.tobytes(), picture.size
        if max(width, height) > MAX_PROPORTION * min(width, height):
            # Some models' tiles would have no height.
            raise InvalidImage(f"a picture of {width} x {height} pixels is too narrow for this model")
        buffer = (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels)
        digest = hashlib.sha256(f"image {width} {height} ".encode() + pixels).digest()
        return self._mtmd.mtmd_bitmap_init(width, height, buffer), digest

    def _audio(self, data: bytes) -> tuple[Any, bytes]:
        sound = decode_audio(data, MAX_SECONDS, self._mtmd.mtmd_get_audio_sample_rate(self._context))
        samples = sound.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        digest = hashlib.sha256(b"audio " + sound.tobytes()).digest()
        return self._mtmd.mtmd_bitmap_init_from_audio(sound.size, samples), digest

    def _cut(self, bitmap: Any, digest: bytes) -> Shown:
        mtmd, chunks, shown = self._mtmd, _Chunks(self._mtmd), Shown()
        part = mtmd.mtmd_input_part(None, bitmap)
        parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
        if mtmd.mtmd_tokenize_from_parts(self._context, chunks.handle, parts, 1, False):
            raise UnsupportedRequest(f"a picture or recording does not suit this model: {last_error()}")
        for index in range(mtmd.mtmd_input_chunks_size(chunks.handle)):
            chunk = mtmd.mtmd_input_chunks_get(chunks.handle, index)
            size = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                ids = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(ctypes.c_size_t()))[:size]
            else:
                ids = media_ids(digest, index, size)
                whole = mtmd.mtmd_decode_use_non_causal(self._context, chunk)
                shown.pieces.append(Piece(ids, whole, chunk, chunks))
            shown.ids.extend(ids)
        return shown


class _Chunks:
    """What libmtmd cut a picture into; freed with the last piece of it."""

    def __init__(self, mtmd: Any) -> None:
        self.handle = mtmd.mtmd_input_chunks_init()
        weakref.finalize(self, mtmd.mtmd_input_chunks_free, self.handle)


def media_ids(digest: bytes, index: int, size: int) -> list[int]:
    """What stands for the places of piece ``index`` of what has this digest.

    Law: two ids are equal only for the same place of the same piece of the same thing.
    """
    named = hashlib.sha256(digest + index.to_bytes(4, "big")).digest()[:16]
    first = int.from_bytes(named, "big") << 32
    return [_FIRST_ID - first - place for place in range(size)]


def is_media(id: int) -> bool:
    """Whether an id among a prompt's stands for a place of a picture or recording."""
    return id <= _FIRST_ID


def before_media(tokens: Iterable[int]) -> list[int]:
    """The tokens of text that a prompt begins with."""
    return list(itertools.takewhile(lambda token: not is_media(token), tokens))


def place(pieces: Iterable[Piece], tokens: Sequence[int]) -> None:
    """Tell ``pieces`` where they start: they are those of ``tokens``, in order."""
    places = (at for at, token in enumerate(tokens) if is_media(token))
    for piece in pieces:
        piece.start, *_ = itertools.islice(places, len(piece.ids))


def cut_at_media(pieces: Iterable[Piece], first: int, size: int) -> tuple[int, Piece | None]:
    """How many of ``size`` tokens from ``first`` on are computed together, and of which piece they are.

    Text ends where a piece begins; of a piece that is ``whole`` they are all that are left.
    """
    for piece in pieces:
        if first < piece.start:
            return min(size, piece.start - first), None
        if (left := piece.start + len(piece.ids) - first) > 0:
            return left if piece.whole else min(size, left), piece
    return size, None


def _library(lib: Any) -> Any:
    """llama-cpp-python's binding of libmtmd. Raises ``EngineError`` when it was built without."""
    try:
        from llama_cpp import mtmd_cpp
    except (ImportError, FileNotFoundError) as error:
        raise EngineError(
            "llama-cpp-python was built without libmtmd, which pictures and sound need: "
            "pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python"
        ) from error
    mtmd_cpp.mtmd_log_set(keep_errors(lib), None)
    return mtmd_cpp
