"""Pictures as cameras and clients send them, made with Pillow."""

import io

from PIL import Image


def encoded(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The bytes of a picture's file."""
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def plain(color: str, size: tuple[int, int] = (8, 8), **options: str) -> bytes:
    """The bytes of a picture of one colour."""
    return encoded(Image.new("RGB", size, color), **options)
