"""The one trainer: transformers' ``Trainer``, told what an example is, what its loss is and where to go on.

Owns validation after each epoch, early stopping, the best epoch's weights, checkpoints (each epoch and every
ten minutes) from which a killed run goes on, the curve, and progress. What is learned is an ``Objective``:
answers of a causal model, labels of an encoder, a teacher's logits. Laws: a run that was killed and went on
gives the curve and the weights of one that was not (``deterministic``: bit for bit, on the same machine
and number of threads); accumulating batches gives the gradient of the batch that they would be together.

Import it inside the function that trains: it loads torch and transformers.
"""

import contextlib
import hashlib
import json
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    enable_full_determinism,
    set_seed,
)
from transformers.utils import logging

from compile.errors import TrainingFailed
from compile.recipe.training import FineTune
from compile.training import checkpoints
from compile.training.run import TrainingRun

CURVE = "curve.json"

_SORT_BATCHES = 16
"""Batches whose examples are sorted by length together: enough to save padding, few enough to stay mixed."""
_SAVE_SECONDS = 600.0
"""At most so much work is lost to a kill."""

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Epoch:
    """What one pass gave: training loss, validation loss and metric, seconds spent."""

    epoch: int
    train_loss: float
    validation_loss: float
    metric: float
    seconds: float


@dataclass(frozen=True)
class Judged:
    """A validation batch: the sum of its losses, what they weigh, and one outcome per example."""

    loss: float
    weight: float
    outcomes: list[Any]


class Objective(ABC):
    """What is learned."""

    @abstractmethod
    def length(self, example: Any) -> int:
        """By which examples are put together, so that a batch needs little padding."""

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> Batch:
        """A batch; everything in it is a tensor."""

    @abstractmethod
    def weight(self, batch: Batch) -> torch.Tensor:
        """What the batch's loss is divided by (with those of batches that are accumulated)."""

    @abstractmethod
    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """The weighted sum of the batch's losses."""

    @abstractmethod
    def judge(self, model: Any, batch: Batch) -> Judged:
        """The same batch in validation, where every token or example weighs the same."""

    @abstractmethod
    def metric(self, outcomes: Sequence[Any]) -> float:
        """One number, higher is better, of all outcomes of a validation."""


def fit(
    model: Any,
    objective: Objective,
    train: Sequence[Any],
    validation: Sequence[Any],
    settings: FineTune,
    run: TrainingRun,
) -> tuple[Epoch, ...]:
    """Train ``model`` in place; it ends with the best epoch's weights. Returns the curve.

    A run that finds a checkpoint of its own goes on from it. Call it, and make the model, within
    ``conditions``. Raises ``TrainingFailed``.
    """
    if not train or not validation:
        raise TrainingFailed(
            f"{len(train)} examples to train on and {len(validation)} to validate: both need some"
        )
    of = identity(model, settings, train, validation)
    per_epoch = math.ceil(math.ceil(len(train) / settings.batch) / settings.accumulate)
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(run.scratch),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        adam_beta2=0.99,
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="no",
        load_best_model_at_end=True,
        metric_for_best_model=settings.best_by,
        greater_is_better=settings.best_by == "metric",
        seed=settings.seed,
        use_cpu=not cuda,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=cuda,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)
    trainer = _Trainer(model, objective, arguments, list(train), list(validation), settings, run, of)
    trainer.remove_callback(PrinterCallback)  # type: ignore[no-untyped-call]
    trainer.add_callback(_Watch(trainer, per_epoch))  # type: ignore[no-untyped-call]
    found = checkpoints.last(run.scratch, of)
    if found is not None:
        trainer.recall(found)
        if ended(trainer.curve, settings):
            checkpoints.load_weights(Path(checkpoints.read_progress(found)["best"]), model)
            return tuple(trainer.curve)
    trainer.train(resume_from_checkpoint=str(found) if found else None)
    return tuple(trainer.curve)


@contextlib.contextmanager
def conditions(settings: FineTune, threads: int) -> Iterator[None]:
    """Seed, threads and determinism for making and training a model; what was set before comes back."""
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(threads)
    if settings.deterministic:
        enable_full_determinism(settings.seed)
    else:
        set_seed(settings.seed)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(strict)
        logging.set_verbosity(verbosity)


def identity(model: Any, settings: FineTune, train: Sequence[Any], validation: Sequence[Any]) -> str:
    """A digest of what a run depends on besides the base's weights."""
    whole = hashlib.sha256(settings.model_dump_json().encode())
    for name, value in model.named_parameters():
        if value.requires_grad:
            whole.update(f"{name}{tuple(value.shape)}".encode())
    for examples in (train, validation):
        whole.update(str(len(examples)).encode())
        for example in examples:
            whole.update(repr(example).encode())
    return whole.hexdigest()


def write_curve(curve: Sequence[Epoch], target: Path) -> None:
    """``curve.json``: a list of epochs with epoch, train_loss, validation_loss, metric, seconds."""
    text = json.dumps([asdict(epoch) for epoch in curve], indent=1)
    (target / CURVE).write_text(text, encoding="utf-8")


def best_epoch(curve: Sequence[Epoch], by: str) -> int:
    """The index of the first epoch that none is better than."""
    if by == "metric":
        return max(range(len(curve)), key=lambda at: curve[at].metric)
    return min(range(len(curve)), key=lambda at: curve[at].validation_loss)


def ended(curve: Sequence[Epoch], settings: FineTune) -> bool:
    """Whether training ends after this curve: all epochs done, or none better for ``patience`` of them."""
    if len(curve) >= settings.epochs:
        return True
    if not curve or settings.patience is None:
        return False
    return len(curve) - 1 - best_epoch(curve, settings.best_by) >= settings.patience


def schedule(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then a linear fall towards zero; no step has a rate of nothing."""
    rising = (step + 1) / max(1.0, warmup * total)
    falling = (total - step) / max(1.0, (1 - warmup) * total)
    return max(0.0, min(1.0, rising, falling))


def batches(lengths: Sequence[int], size: int, seed: int) -> list[list[int]]:
    """Every index once, in batches of like length, in an order that the seed fixes."""
    chance = random.Random(seed)  # noqa: S311 - an order, not a secret
    indices = list(range(len(lengths)))
    chance.shuffle(indices)
    result = []
    # Whole batches first, so that their number is the same whatever the order.
    for at in range(0, len(indices), size * _SORT_BATCHES):
        group = sorted(indices[at : at + size * _SORT_BATCHES], key=lambda index: lengths[index])
        result += [group[b : b + size] for b in range(0, len(group), size)]
    chance.shuffle(result)
    return result


class _Order:
    """A batch sampler whose order depends on seed and epoch alone, so that a run can go on within one."""

    def __init__(self, lengths: Sequence[int], size: int, seed: int) -> None:
        self._lengths, self._size, self._seed, self.epoch = lengths, size, seed, 0

    def __iter__(self) -> Iterator[list[int]]:
        return iter(batches(self._lengths, self._size, self._seed * 1000 + self.epoch))

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / self._size)


class _Loader(torch.utils.data.DataLoader):  # type: ignore[type-arg]
    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of each epoch."""
        self.batch_sampler.epoch = epoch  # type: ignore[union-attr]


class _Trainer(Trainer):
    def __init__(
        self,
        model: Any,
        objective: Objective,
        arguments: TrainingArguments,
        train: list[Any],
        validation: list[Any],
        settings: FineTune,
        run: TrainingRun,
        of: str,
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            data_collator=objective.collate,
            train_dataset=train,
            eval_dataset=validation,
        )
        # The loss is divided here, by the weight of all batches of a step, and nowhere else.
        self.model_accepts_loss_kwargs = True
        self.curve: list[Epoch] = []
        self.losses, self.steps_of_epoch, self.seconds_before = 0.0, 0, 0.0
        self.now, self.report = run.now, run.report
        self.began, self.saved = run.now(), run.now()
        self._objective, self._settings = objective, settings
        self._train, self._validation = train, validation
        self._scratch, self._of = run.scratch, of

    def recall(self, folder: Path) -> None:
        """Take curve and sums from a checkpoint."""
        progress = checkpoints.read_progress(folder)
        self.curve = [Epoch(**epoch) for epoch in progress["curve"]]
        self.losses, self.steps_of_epoch = progress["losses"], progress["steps_of_epoch"]
        self.seconds_before = progress["seconds"]

    def get_train_dataloader(self) -> _Loader:
        lengths = [self._objective.length(example) for example in self._train]
        order = _Order(lengths, self._settings.batch, self._settings.seed)
        return _Loader(self._train, batch_sampler=order, collate_fn=self._objective.collate)  # type: ignore[arg-type]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer if optimizer is not None else self.optimizer,  # type: ignore[arg-type]
                lambda step: schedule(step, num_training_steps, self._settings.warmup),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: Any) -> torch.Tensor | None:
        if not batch_samples:  # an epoch that is gone on with asks for as many steps as a whole one
            return None
        return torch.stack([self._objective.weight(batch) for batch in batch_samples]).sum().to(device)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        loss: torch.Tensor = self._objective.loss(model, inputs) / num_items_in_batch
        self.losses += loss.item()
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        self.model.eval()  # type: ignore[union-attr]
        order = sorted(
            range(len(self._validation)), key=lambda at: self._objective.length(self._validation[at])
        )
        loss, weight, outcomes = 0.0, 0.0, []
        with torch.no_grad():
            for at in range(0, len(order), self._settings.batch):
                chosen = [self._validation[index] for index in order[at : at + self._settings.batch]]
                judged = self._objective.judge(
                    self.model, self._prepare_inputs(self._objective.collate(chosen))
                )
                loss, weight = loss + judged.loss, weight + judged.weight
                outcomes += judged.outcomes
        number = len(self.curve) + 1
        spent = self.seconds_before + self.now() - self.began
        epoch = Epoch(
            number,
            self.losses / max(1, self.steps_of_epoch),
            loss / weight,
            self._objective.metric(outcomes),
            round(spent, 1),
        )
        if not (math.isfinite(epoch.train_loss) and math.isfinite(epoch.validation_loss)):
            raise TrainingFailed(
                f"epoch {number}: training loss {epoch.train_loss}, validation loss {epoch.validation_loss}: "
                f"the run diverged; a learning_rate below {self._settings.learning_rate} may help"
            )
        self.curve.append(epoch)
        self.losses, self.steps_of_epoch, self.seconds_before = 0.0, 0, 0.0
        self.began = self.now()
        return {"eval_loss": epoch.validation_loss, "eval_metric": epoch.metric}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step, best = self.state.global_step, self.state.best_model_checkpoint
        if self.state.best_global_step == step:
            best = str(self._scratch / f"checkpoint-{step}")
        self.state.best_model_checkpoint = best
        progress = {
            "run": self._of,
            "curve": [asdict(epoch) for epoch in self.curve],
            "losses": self.losses,
            "steps_of_epoch": self.steps_of_epoch,
            "seconds": self.seconds_before + self.now() - self.began,
            "best": best,
        }
        checkpoints.write(
            self._scratch,
            step,
            self.model,
            self.optimizer,
            self.lr_scheduler,
            progress,
            lambda folder: self.state.save_to_json(str(folder / "trainer_state.json")),
            [Path(best)] if best else [],
        )
        self.saved = self.now()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoints.load_weights(Path(resume_from_checkpoint), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_random_state(Path(checkpoint))

    def _load_best_model(self) -> None:
        checkpoints.load_weights(Path(str(self.state.best_model_checkpoint)), self.model)


class _Watch(TrainerCallback):
    """Says how far a run is, and when to save and to stop."""

    def __init__(self, trainer: _Trainer, per_epoch: int) -> None:
        self._trainer, self._per_epoch = trainer, per_epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self._trainer
        trainer.steps_of_epoch += 1
        loss = trainer.losses / trainer.steps_of_epoch
        note = f"epoch {len(trainer.curve) + 1}, loss {loss:.3f}"
        if trainer.curve:
            note += f" (validation {trainer.curve[-1].validation_loss:.3f})"
        trainer.report(state.global_step / state.max_steps, note)
        within = state.global_step % self._per_epoch != 0
        if within and trainer.now() - trainer.saved > _SAVE_SECONDS:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if ended(self._trainer.curve, self._trainer._settings):
            control.should_training_stop = True
