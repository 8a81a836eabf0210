"""How many images may be in a request: told before any is decoded."""

from edge_llama.server.failures import ApiError


def check_images(field: str, count: int, most: int) -> None:
    """ApiError if ``field`` has more than may be."""
    if count > most:
        raise ApiError(400, f"{field}: {count:,} images, at most {most:,} may be in a request", param=field)
