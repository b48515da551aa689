"""The methods of fine-tuning as peft configurations: which weights of a model are trained.

Owns the way from a folder to a model whose trainable weights are marked. Refuses a method that this
machine cannot carry out, and targets that the model does not have.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compile.errors import BadRecipe, Refused
from compile.recipe.training import DEFAULT_TARGETS, FineTune


def check_machine(settings: FineTune) -> None:
    """Raise ``Refused``, with what to do instead, when the method cannot run on this machine."""
    if settings.method != "qlora":
        return
    import importlib.util

    import torch

    missing = []
    if not torch.cuda.is_available():
        missing.append("an NVIDIA GPU that CUDA sees")
    if importlib.util.find_spec("bitsandbytes") is None:
        missing.append("the package bitsandbytes")
    if missing:
        raise Refused(
            f"finetune.method: qlora needs {' and '.join(missing)}. Use method: lora here: it makes the same "
            "kind of adapter, with the base in 32 bits instead of 4; or run this recipe on a GPU machine"
        )


def load_causal(hf_folder: Path, settings: FineTune, start_from: Path | None = None) -> Any:
    """A causal model of which the method's weights, and no others, are trainable.

    ``start_from`` is a peft folder to go on from. Raises ``Refused``, ``BadRecipe``.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_machine(settings)
    options: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True}
    if settings.method == "qlora":
        from transformers import BitsAndBytesConfig

        options["dtype"] = torch.bfloat16
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    base = AutoModelForCausalLM.from_pretrained(hf_folder, **options)
    if settings.method == "qlora":
        from peft import prepare_model_for_kbit_training

        base = prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
            base, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    # A path of this machine has no place in what is written.
    base.config._name_or_path = ""
    base.config.use_cache = False
    return adapt(base, settings, "CAUSAL_LM", start_from)


def adapt(base: Any, settings: FineTune, task_type: str, start_from: Path | None = None) -> Any:
    """``base`` with the method's weights trainable. Raises ``BadRecipe``."""
    from peft import PeftModel, get_peft_model

    layers = base.config.num_hidden_layers
    if settings.first_layer >= layers:
        raise BadRecipe(f"finetune.first_layer: {settings.first_layer}, but the model has {layers} layers")
    if start_from is not None:
        if settings.method == "full":
            raise BadRecipe("finetune.method: full cannot go on from an adapter; name a whole model as base")
        model = PeftModel.from_pretrained(base, str(start_from), is_trainable=True, local_files_only=True)
        kind = model.active_peft_config.peft_type.value
        if kind != _PEFT_TYPES[settings.method]:
            raise BadRecipe(f"finetune.method: {settings.method} cannot go on from an adapter of type {kind}")
        return model
    if settings.method == "full":
        _freeze_below(base, settings.first_layer)
        return base
    return get_peft_model(base, _shape(base, settings, task_type))


def begin_with(model: Any, settings: FineTune, ids: Sequence[int]) -> None:
    """Let virtual tokens begin as the real ones ``ids``, repeated or cut to their number.

    A random beginning costs more steps than small data have (Li and Liang 2021, section 7.4; Lester et al.
    2021, section 3.2). Law: before training, the model says what its base says after these tokens.
    """
    import torch

    if settings.method not in ("prefix", "prompt"):
        return
    count = settings.virtual_tokens
    tokens = torch.tensor([(list(ids) * (count // len(ids) + 1))[:count]])
    base = model.get_base_model()
    with torch.no_grad():
        tokens = tokens.to(base.device)
        if settings.method == "prompt":
            start = base.get_input_embeddings()(tokens)[0]
        else:
            cache = base(input_ids=tokens, use_cache=True).past_key_values
            # peft keeps, per token, keys and values of each layer after one another.
            pairs = [part for layer in cache.layers for part in (layer.keys, layer.values)]
            start = torch.stack(pairs)[:, 0].permute(2, 0, 1, 3).reshape(count, -1)
        model.prompt_encoder["default"].embedding.weight.copy_(start)


_PEFT_TYPES = {
    "lora": "LORA",
    "qlora": "LORA",
    "prefix": "PREFIX_TUNING",
    "p-tuning": "P_TUNING",
    "prompt": "PROMPT_TUNING",
}


def _shape(base: Any, settings: FineTune, task_type: str) -> Any:
    from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    if settings.method in ("lora", "qlora"):
        return LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=_targets(base, settings),
            layers_to_transform=(
                list(range(settings.first_layer, base.config.num_hidden_layers))
                if settings.first_layer
                else None
            ),
            task_type=task_type,
        )
    shapes = {"prefix": PrefixTuningConfig, "p-tuning": PromptEncoderConfig, "prompt": PromptTuningConfig}
    more = {"encoder_hidden_size": base.config.hidden_size} if settings.method == "p-tuning" else {}
    return shapes[settings.method](num_virtual_tokens=settings.virtual_tokens, task_type=task_type, **more)


def _targets(base: Any, settings: FineTune) -> list[str] | str:
    import torch

    there = {
        name.rpartition(".")[2] for name, part in base.named_modules() if isinstance(part, torch.nn.Linear)
    }
    missing = [name for name in settings.targets if name not in there]
    if not missing:
        return list(settings.targets)
    if settings.targets == DEFAULT_TARGETS:
        return "all-linear"
    raise BadRecipe(
        f"finetune.targets: the model has no {', '.join(missing)}; it has {', '.join(sorted(there))}"
    )


def _freeze_below(base: Any, first_layer: int) -> None:
    if first_layer == 0:
        return
    layers = layers_of(base)
    base.get_input_embeddings().requires_grad_(False)
    for layer in layers[:first_layer]:
        layer.requires_grad_(False)


def layers_of(model: Any) -> Any:
    """The list of layers of a Llama-like model or a BERT-like one, wrapped by peft or not.

    Raises ``BadRecipe`` for another architecture.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    core = getattr(base, base.base_model_prefix, base)
    found = getattr(core, "layers", None)
    if found is None:
        found = getattr(getattr(core, "encoder", None), "layer", None)
    if found is None:
        raise BadRecipe(
            f"finetune.first_layer: the layers of {base.config.model_type!r} are not known; leave it at 0"
        )
    return found
