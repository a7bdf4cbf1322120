"""CrossEarth in JAX: domain-generalizable semantic segmentation of remote-sensing images.

```
model = crossearth_jax.load("Potsdam(r)-source.pth", num_classes=6)
labels = model.predict(images)  # uint8 RGB (b, h, w, 3) -> (b, h, w) uint8
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossearth_jax.inference.segmentor import Segmentor, load

__all__ = ["Segmentor", "load"]


def __getattr__(name: str) -> Any:
    """Import JAX and the model at their first use, so that `import crossearth_jax` is fast."""
    if name in __all__:
        from crossearth_jax.inference import segmentor

        return getattr(segmentor, name)
    raise AttributeError(f"module 'crossearth_jax' has no attribute {name!r}")
