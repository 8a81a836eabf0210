"""``/health``: whether the server is there."""

from fastapi import APIRouter

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """That the server answers."""
    return {"status": "ok"}
