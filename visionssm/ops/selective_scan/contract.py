"""What a selective scan is given: checks, sizes, and one canonical form that every implementation reads."""

from typing import NamedTuple, cast

import torch
from torch import Tensor

MAX_STATES = 64
_INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_OUTPUTS = ("sum", "route", "step")
_INDICES = ("token", "step")


class Scan(NamedTuple):
    """One checked call in canonical form: every tensor has its route axis, of size 1 where routes share it.

    b batch, L tokens, T scan steps, K routes, d channels, N states, R rank of a low-rank delta (S is L or T).
    """

    u: Tensor  # (b, S, 1 or K, d)
    delta: Tensor  # (b, S, 1 or K, d or R)
    A: Tensor  # (1 or K, d, N)
    B: Tensor  # (b, S, 1 or K, N)
    C: Tensor | None  # (b, S, 1 or K, N)
    D: Tensor | None  # (1 or K, d)
    delta_bias: Tensor | None  # (1 or K, d)
    dt_weight: Tensor | None  # (1 or K, d, R)
    initial_state: Tensor | None  # (b, K, d, N), compute_dtype
    order: Tensor | None  # (K, T), -1 for a zero token
    num_tokens: int  # L
    u_by_step: bool
    by_step: bool  # delta, B and C are stored by step
    out: str  # "sum", "route" or "step"
    out_dtype: torch.dtype
    softplus: bool  # of the step size; without it the raw step size is taken as it is
    last_state: bool  # also return the state after the last step, (b, K, d, N)

    @classmethod
    def differentiable(cls) -> tuple[str, ...]:
        """Names of the tensors that have gradients: all fields before `order`."""
        return cls._fields[: cls._fields.index("order")]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors that have gradients."""
        return cast(tuple[Tensor | None, ...], self[: len(self.differentiable())])

    @property
    def nothing(self) -> Tensor:
        """What stands for an absent result where tensors must be returned."""
        return self.u.new_empty(0, dtype=self.compute_dtype)

    @property
    def batch(self) -> int:
        return self.u.shape[0]

    @property
    def channels(self) -> int:
        return self.A.shape[1]

    @property
    def states(self) -> int:
        return self.A.shape[2]

    @property
    def routes(self) -> int:
        if self.order is not None:
            return self.order.shape[0]
        return max(t.shape[i] for t, i in self._route_axes())

    @property
    def steps(self) -> int:
        return self.num_tokens if self.order is None else self.order.shape[1]

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.float64 if self.u.dtype == torch.float64 else torch.float32

    @property
    def updates(self) -> int:
        """Number of times that a state is updated."""
        return self.batch * self.steps * self.routes * self.channels * self.states

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of an initial or last state."""
        return self.batch, self.routes, self.channels, self.states

    @property
    def out_shape(self) -> tuple[int, ...]:
        if self.out == "sum":
            return self.batch, self.num_tokens, self.channels
        length = self.num_tokens if self.out == "route" else self.steps
        return self.batch, length, self.routes, self.channels

    def _route_axes(self) -> list[tuple[Tensor, int]]:
        pairs = [
            (self.u, 2),
            (self.delta, 2),
            (self.A, 0),
            (self.B, 2),
            (self.C, 2),
            (self.D, 0),
            (self.delta_bias, 0),
            (self.dt_weight, 0),
            (self.initial_state, 1),
        ]
        return [(t, i) for t, i in pairs if t is not None]


def canonical(
    u,
    delta,
    A,
    B,
    C,
    D,
    delta_bias,
    dt_weight,
    order,
    num_tokens,
    u_index,
    index,
    out,
    out_dtype,
    initial_state=None,
    delta_softplus=True,
    return_last_state=False,
) -> Scan:
    """Check the arguments of `selective_scan` and bring them to canonical form (views, no copies)."""
    _one_of("out", out, _OUTPUTS)
    _one_of("u_index", u_index, _INDICES)
    _one_of("index", index, _INDICES)
    tensors = dict(
        u=u,
        delta=delta,
        A=A,
        B=B,
        C=C,
        D=D,
        delta_bias=delta_bias,
        dt_weight=dt_weight,
        initial_state=initial_state,
        order=order,
    )
    for name in ("u", "delta", "A", "B"):
        if not isinstance(tensors[name], Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensors[name]).__name__}")
    for name, t in tensors.items():
        if t is not None and not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor or None, got {type(t).__name__}")
        if t is not None and t.device != u.device:
            raise ValueError(f"{name} is on {t.device} but u is on {u.device}; all tensors must share one device")
    _check_dtypes(tensors, out_dtype)

    for name, ndims in (
        ("u", (3, 4)),
        ("delta", (3, 4)),
        ("B", (3, 4)),
        ("C", (3, 4)),
        ("A", (2, 3)),
        ("D", (1, 2)),
        ("delta_bias", (1, 2)),
        ("dt_weight", (2, 3)),
        ("initial_state", (3, 4)),
        ("order", (2,)),
    ):
        t = tensors[name]
        if t is not None and t.ndim not in ndims:
            raise ValueError(f"{name} must have {' or '.join(map(str, ndims))} dimensions, got shape {tuple(t.shape)}")
    u, delta, B = (t.unsqueeze(2) if t.ndim == 3 else t for t in (u, delta, B))
    C = C.unsqueeze(2) if C is not None and C.ndim == 3 else C
    A = A.unsqueeze(0) if A.ndim == 2 else A
    D = D.unsqueeze(0) if D is not None and D.ndim == 1 else D
    delta_bias = delta_bias.unsqueeze(0) if delta_bias is not None and delta_bias.ndim == 1 else delta_bias
    dt_weight = dt_weight.unsqueeze(0) if dt_weight is not None and dt_weight.ndim == 2 else dt_weight

    if initial_state is not None and initial_state.ndim == 3:
        initial_state = initial_state.unsqueeze(1)

    d, n = A.shape[1:]
    if d < 1:
        raise ValueError("A has no channels; expected ([routes,] channels, states)")
    if not 1 <= n <= MAX_STATES:
        raise ValueError(f"A has {n} states; between 1 and {MAX_STATES} are supported")
    if C is None and n != 1:
        raise ValueError(f"C=None returns the states themselves and needs N = 1, but A has {n} states")
    num_tokens = _num_tokens(u, delta, order, num_tokens, u_index, index)
    if num_tokens < 1:
        raise ValueError(f"there must be at least 1 token, got {num_tokens}")
    if order is not None and (order.shape[0] < 1 or order.shape[1] < 1):
        raise ValueError(f"order must be (routes, steps), both at least 1, got {tuple(order.shape)}")

    scan = Scan(
        u,
        delta,
        A,
        B,
        C,
        D,
        delta_bias,
        dt_weight,
        initial_state,
        order,
        num_tokens,
        u_index == "step",
        index == "step",
        out,
        u.dtype if out_dtype is None else out_dtype,
        softplus=bool(delta_softplus),
        last_state=bool(return_last_state),
    )
    k, t = scan.routes, scan.steps
    rank = d if dt_weight is None else dt_weight.shape[2]
    length = {True: t, False: num_tokens}
    expected = dict(
        u=(u.shape[0], length[scan.u_by_step], k, d),
        delta=(u.shape[0], length[scan.by_step], k, rank),
        A=(k, d, n),
        B=(u.shape[0], length[scan.by_step], k, n),
        C=(u.shape[0], length[scan.by_step], k, n),
        D=(k, d),
        delta_bias=(k, d),
        dt_weight=(k, d, rank),
        initial_state=scan.state_shape,
    )
    for name, shape in expected.items():
        axis = 0 if len(shape) < 4 else 1 if name == "initial_state" else 2
        _check_shape(name, getattr(scan, name), shape, axis)
    if initial_state is not None:
        scan = scan._replace(initial_state=initial_state.expand(scan.state_shape))
    return scan


def _one_of(name: str, value, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _check_dtypes(tensors: dict, out_dtype) -> None:
    double = tensors["u"].dtype == torch.float64
    for name in ("u", "delta", "B", "C"):
        t = tensors[name]
        if t is None:
            continue
        if t.dtype not in _INPUT_DTYPES:
            raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {t.dtype}")
        if (t.dtype == torch.float64) != double:
            raise TypeError(
                f"{name} is {t.dtype} but u is {tensors['u'].dtype}; float64 does not mix with other dtypes"
            )
    state = torch.float64 if double else torch.float32
    for name in ("A", "D", "delta_bias", "initial_state"):
        t = tensors[name]
        if t is not None and t.dtype != state:
            raise TypeError(f"{name} must be {state} (the state's dtype), got {t.dtype}; pass {name}.to({state})")
    weight, delta = tensors["dt_weight"], tensors["delta"]
    if weight is not None and (weight.dtype not in _INPUT_DTYPES or (weight.dtype == torch.float64) != double):
        raise TypeError(
            f"dt_weight is {weight.dtype} but delta is {delta.dtype}; float64 does not mix with other dtypes"
        )
    order = tensors["order"]
    if order is not None and order.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"order must be int32 or int64, got {order.dtype}")
    if out_dtype is not None and out_dtype not in _INPUT_DTYPES:
        raise TypeError(f"out_dtype must be float32, bfloat16, float16 or float64, got {out_dtype}")


def _num_tokens(u, delta, order, num_tokens, u_index, index) -> int:
    if num_tokens is not None:
        return num_tokens
    if u_index == "token" or order is None:
        return u.shape[1]
    if index == "token":
        return delta.shape[1]
    raise ValueError("num_tokens is needed: u, delta, B and C are stored by step, so the number of tokens is unknown")


def _check_shape(name: str, t: Tensor | None, shape: tuple[int, ...], axis: int) -> None:
    if t is None:
        return
    shared = shape[:axis] + (1,) + shape[axis + 1 :]
    if tuple(t.shape) not in (shape, shared):
        k = shape[axis]
        alternative = f" or {shared} (shared by the {k} routes)" if k > 1 else ""
        raise ValueError(f"{name} has shape {tuple(t.shape)} in canonical form, expected {shape}{alternative}")
