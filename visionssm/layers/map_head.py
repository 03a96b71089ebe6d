"""The frame of heads that have layers of their own between the map and the classifier."""

from torch import nn

from .pooling import make_map_pool


class MapHead(nn.Module):
    """Pooling of a map (b, h, w, c), dropout, and classifiers that can be replaced.

    A subclass makes its own layers first, then calls `reset`, and says in `forward` what the classifier sees. Without
    pooling there is a classifier at every position, and with no classifier nothing but the map.

    Args:
        in_features: Channels of the map.
        drop_rate: Dropout before the classifiers.
        hidden_size: Channels that the classifiers see; those of the map if None.
        flatten: Pool to (b, c), not to (b, 1, 1, c).
        classifiers: Names of the classifiers.
    """

    fc: nn.Module

    def __init__(
        self,
        in_features: int,
        drop_rate: float = 0.0,
        hidden_size: int | None = None,
        flatten: bool = True,
        classifiers: tuple[str, ...] = ("fc",),
    ):
        super().__init__()
        self.hidden_size = hidden_size or in_features
        self.flatten = flatten
        self.classifiers = classifiers
        self.fixed_width = hidden_size is not None
        self.drop = nn.Dropout(drop_rate)

    def reset(self, num_classes: int, pool_type: str | None, in_features: int, device=None, dtype=None) -> None:
        """Replace the classifiers, and the pooling unless it is None."""
        if pool_type is not None:
            self.global_pool = make_map_pool(pool_type, self.flatten)
            self.pool_type = pool_type
        if not self.fixed_width:
            self.hidden_size = in_features
        self.num_classes = num_classes
        for name in self.classifiers:
            fc = nn.Linear(self.hidden_size, num_classes, device=device, dtype=dtype) if num_classes else nn.Identity()
            setattr(self, name, fc.train(self.training))
