"""Global pooling of maps for heads that have layers of their own between pooling and classifier."""

from timm.layers import SelectAdaptivePool2d

_POOLS = ("avg", "max", "avgmax", "")


def make_map_pool(pool_type: str, flatten: bool = True) -> SelectAdaptivePool2d:
    """Make the pooling of a map (b, h, w, d) to (b, d), or (b, 1, 1, d) if not flattened; "" leaves it.

    Raises:
        ValueError: the pooling is unknown, or changes the channels, which the head's own layers cannot take.
    """
    # as timm writes it into a stored model's configuration; "fast" alone is the average there
    pool_type = "avg" if pool_type == "fast" else pool_type.removeprefix("fast")
    if pool_type not in _POOLS:
        why = "; the head's own layers take the channels of the map" if pool_type == "catavgmax" else ""
        raise ValueError(f"global_pool must be one of {', '.join(map(repr, _POOLS))}, got {pool_type!r}{why}")
    fast = f"fast{pool_type}" if pool_type else ""
    return SelectAdaptivePool2d(pool_type=fast, flatten=flatten and bool(pool_type), input_fmt="NHWC")
