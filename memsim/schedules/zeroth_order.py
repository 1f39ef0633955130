"""Zeroth-order methods as rows of a table: which lanes are run, what estimate their losses give, what is done with it.

A *lane* is one perturbed forward, w + s z. All lanes of a step share one stream of the weights. The estimate is one
number a direction, the projected gradient rho; the gradient is the mean of rho_i z_i over the directions, with z drawn
again and never stored. Names and equations: the zeroth-order benchmark (arXiv 2402.11592), MeZO (2305.17333) and FZOO
(2506.09034).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from memsim.errors import UsageError
from memsim.ir.program import Attr
from memsim.models.scheme import Scheme
from memsim.schedules.optimizers import OptimizerConfig

NOISES = ("gaussian", "rademacher")
MASKS = ("random", "rows")


@dataclass(frozen=True, slots=True)
class Method:
    """One zeroth-order method.

    Attributes:
        about: What it does, for people.
        estimate: ``central`` runs w + eps z and w - eps z for each direction, rho = (L+ - L-) / (2 eps); ``one_sided``
            runs w once and w + eps z, rho = (L+ - L) / eps; ``normalized`` the same with rho = (L+ - L) / std(L+);
            ``jvp`` runs w with its tangent along z, rho = <gradient, z> exactly.
        optimizer: What takes the gradient: an update of ``OptimizerConfig``.
        sign: What of the gradient is replaced by its sign: nothing, each ``estimate``, or each ``element``.
        directions: Directions a step, if the user names no other number.
        eps: Size of the perturbation, likewise.
        noise: The only distribution that it allows; empty for any.
        streams: ``shared``: all lanes in one stream of the weights. ``separate``: a stream for each.
        blocks: ``jacobi`` estimates each block's gradient with only that block perturbed, and then updates all;
            ``gauss-seidel`` updates each block before the next one is perturbed; empty perturbs all blocks at once.
        hybrid: The top blocks are trained by backpropagation, through the lane that is not perturbed.
        accepts: Try both w - lr g and w + lr g, and go where the loss of the same batch is lowest, or nowhere.
    """

    about: str
    estimate: str = "central"
    optimizer: str = "sgd"
    sign: str = ""
    directions: int = 1
    eps: float = 1e-3
    noise: str = ""
    streams: str = "shared"
    blocks: str = ""
    hybrid: bool = False
    accepts: bool = False

    @property
    def accumulates(self) -> bool:
        """Whether losses of several micro-batches can be summed before the estimate."""
        return not (self.accepts or self.blocks or self.hybrid or self.estimate == "jvp")

    @property
    def replays(self) -> bool:
        """Whether seeds and projected gradients are all that its updates need."""
        return not self.hybrid

    def lanes(self, directions: int) -> tuple[str, ...]:
        """Return what each lane adds: ``+2`` and ``-2`` the noise of direction 2, ``.`` nothing."""
        if self.estimate == "central":
            return tuple(f"{sign}{index}" for index in range(directions) for sign in "+-")
        return (".", *(f"{'=' if self.estimate == 'jvp' else '+'}{index}" for index in range(directions)))


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "mezo": Method("zeroth-order SGD, all perturbed forwards in one stream of the weights"),
        "mezo-naive": Method("the same with one stream of the weights for each forward", streams="separate"),
        "zo-sgd-sign": Method("step by the sign of each element of the estimated gradient", sign="element"),
        "zo-sgd-sign-scalar": Method("step by sign(rho) z, as the benchmark's code does", sign="estimate"),
        "zo-sgd-mmt": Method("momentum (heavy ball, 0.9) on the estimated gradient", optimizer="momentum"),
        "zo-sgd-cons": Method("of w, w - lr g and w + lr g take what has the lowest loss", estimate="one_sided",
                              accepts=True),
        "zo-adam": Method("Adam on the estimated gradient", optimizer="adamw"),
        "fzoo": Method("one-sided, +-1 noise, steps divided by the spread of losses", estimate="normalized",
                       directions=8, eps=1e-4, noise="rademacher"),
        "forward-grad": Method("exact directional derivative by forward differentiation", estimate="jvp", eps=1.0),
        "zo-jacobi": Method("an estimate for each block, with only that block perturbed", blocks="jacobi"),
        "zo-gauss-seidel": Method("the same, each block updated before the next is perturbed", blocks="gauss-seidel"),
        "hybrid": Method("backpropagation through the top blocks, zeroth-order below", estimate="one_sided",
                         hybrid=True),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ZeroOrder:
    """What a user may set of a zeroth-order method; None takes the method's own.

    Attributes:
        eps: Size of the perturbation.
        directions: Directions a step.
        noise: Distribution of z: ``gaussian`` or ``rademacher``.
        sparsity: Share of the elements that are neither perturbed nor updated, 0 to below 1.
        mask: ``random`` leaves out elements, ``rows`` whole rows of a tensor.
        resample: Steps after which the mask is drawn anew.
        lr: Learning rate of the blocks that a hybrid trains by estimates; None is that of the others.
        hybrid_k: Blocks at the top that a hybrid trains by backpropagation.
    """

    eps: float | None = None
    directions: int | None = None
    noise: str | None = None
    sparsity: float = 0.0
    mask: str = "random"
    resample: int = 1
    lr: float | None = None
    hybrid_k: int = 1


@dataclass(frozen=True, slots=True)
class Estimator:
    """A method with every setting decided: what its lowering and the seed log need.

    Attributes:
        optimizer: Its update; ``lr`` is the user's, and there is no weight decay.
    """

    name: str
    method: Method
    eps: float
    directions: int
    noise: str
    sparsity: float
    mask: str
    resample: int
    optimizer: OptimizerConfig
    hybrid_k: int = 1

    def n_estimates(self, n_blocks: int) -> int:
        """Return how many projected gradients come out of a step."""
        return n_blocks if self.method.blocks else self.directions

    @property
    def lanes(self) -> tuple[str, ...]:
        """What each lane adds; see ``Method.lanes``."""
        return self.method.lanes(self.directions)

    def noise_attrs(self) -> dict[str, Attr]:
        """Return the attributes of every node that draws z."""
        return {
            "rademacher": self.noise == "rademacher",
            "density": 1.0 - self.sparsity,
            "mask_rows": self.mask == "rows",
            "resample": self.resample,
        }

    def update_attrs(self) -> dict[str, Attr]:
        """Return the attributes of every update, beside which tensors it is of."""
        return (
            self.noise_attrs() | self.optimizer.attrs() | {"optimizer": self.optimizer.name, "sign": self.method.sign}
        )


def estimator(name: str, settings: ZeroOrder, lr: float, accumulate: int = 1) -> Estimator:
    """Decide the settings of method ``name``.

    Raises:
        UsageError: No such method, or a setting that it cannot have.
    """
    if name not in METHODS:
        raise UsageError(f"no zeroth-order method called {name!r}; methods: {', '.join(METHODS)}")
    method = METHODS[name]
    eps = method.eps if settings.eps is None else settings.eps
    directions = method.directions if settings.directions is None else settings.directions
    noise = settings.noise or method.noise or NOISES[0]
    _check(name, method, replace(settings, eps=eps, directions=directions, noise=noise), accumulate)
    return Estimator(
        name=name,
        method=method,
        eps=eps,
        directions=directions,
        noise=noise,
        sparsity=settings.sparsity,
        mask=settings.mask,
        resample=settings.resample,
        optimizer=OptimizerConfig(method.optimizer, lr if settings.lr is None else settings.lr, weight_decay=0.0),
        hybrid_k=settings.hybrid_k,
    )


def for_scheme(decided: Estimator, scheme: Scheme) -> Estimator:
    """Return ``decided`` as it is run when ``scheme`` says what is trained.

    Lanes that share a stream stand side by side in the rank of adapters. Other tensors have no such axis: every lane
    gets a stream of its own, unless the step has one for matrices that are trained.

    Raises:
        UsageError: The method needs lanes in one stream.
    """
    if scheme.adapter_rank and not scheme.labels:
        return decided
    method = decided.method
    can = {name: other for name, other in METHODS.items() if other.accumulates}
    if scheme.trains_matrices:
        can = {name: other for name, other in can.items() if other.optimizer == "sgd"}
    if decided.name not in can:
        reason = (
            "trains LoRA adapters only"
            if not method.accumulates
            else "keeps state as large as the model's weights in float32, once or twice"
        )
        beside = f"--scheme {scheme.name}" if not scheme.adapter_rank else "a classifier"
        raise UsageError(f"--schedule {decided.name} {reason}; with {beside} use {', '.join(can)}")
    if scheme.trains_matrices:
        return decided  # its lanes share what is read of the disk
    return replace(decided, method=replace(method, streams="separate"))


def _check(name: str, method: Method, settings: ZeroOrder, accumulate: int) -> None:
    eps, directions = settings.eps or 0.0, settings.directions or 0
    if not 0 < eps < float("inf"):
        raise UsageError(f"--zo-eps {eps:g} must be a positive number: losses of equal weights have no difference")
    if not 1 <= directions <= 1024:
        raise UsageError(f"--zo-directions {directions} must be 1 to 1024")
    if method.estimate == "normalized" and directions < 2:
        raise UsageError(f"--zo-directions 1: {name} divides by the spread of the losses, which takes 2 or more")
    if method.estimate == "jvp" and eps != 1.0:
        raise UsageError(f"--zo-eps {eps:g}: {name} differentiates exactly and has no eps; leave it out")
    if (method.accepts or method.blocks or method.estimate == "jvp") and directions > 1:
        raise UsageError(f"--zo-directions {directions}: {name} has one direction; leave it out")
    if settings.noise not in NOISES:
        raise UsageError(f"--zo-noise {settings.noise!r}: choose from {', '.join(NOISES)}")
    if method.noise not in ("", settings.noise):
        raise UsageError(f"--zo-noise {settings.noise}: {name} is defined for {method.noise} noise")
    if not 0 <= settings.sparsity < 1:
        raise UsageError(f"--zo-sparsity {settings.sparsity:g} must be at least 0 and below 1: at 1 nothing would move")
    if settings.mask not in MASKS:
        raise UsageError(f"--zo-mask {settings.mask!r}: choose from {', '.join(MASKS)}")
    if settings.resample < 1:
        raise UsageError(f"--zo-resample {settings.resample} is below 1")
    if accumulate > 1 and not method.accumulates:
        raise UsageError(
            f"--accumulate {accumulate}: {name} needs the losses of one batch before it goes on; use --accumulate 1 "
            f"or another method"
        )
