"""From the configuration to the table of models that it describes."""

from dataclasses import replace

from proxy.backends.backend import Backend
from proxy.backends.registry import BackendRegistry
from proxy.config.settings import Settings
from proxy.config.tables import Config, ModelConfig
from proxy.serving.models import Model, Models
from proxy.serving.terms import model_terms
from proxy.telemetry.metrics import Metrics


def build_models(
    config: Config, settings: Settings, backends: BackendRegistry, metrics: Metrics
) -> Models:
    """The table of models; backends are made, or kept, as it needs them."""
    endpoints = {name: backends.endpoint(name, e) for name, e in config.endpoints.items()}
    models = {
        name: _model(name, m, endpoints[m.endpoint], settings, metrics)
        for name, m in config.models.items()
    }
    listed = []
    for name, model_config in config.models.items():
        model = _with_fallback(models[name], model_config, models, backends)
        listed.append(model)
        listed += [
            replace(model, name=lora, served_as=lora, parent=name) for lora in model_config.loras
        ]
    aliases = {alias: name for name, m in config.models.items() for alias in m.aliases}
    open_model = None
    if (open_name := config.open_endpoint) is not None:
        served = ModelConfig(endpoint=open_name)
        open_model = _model(open_name, served, endpoints[open_name], settings, metrics)
        open_model = replace(open_model, served_as=None)
    return Models(listed, aliases, open_model=open_model)


def _model(
    name: str, config: ModelConfig, backend: Backend, settings: Settings, metrics: Metrics
) -> Model:
    return Model(
        name=name,
        served_as=config.served_as or name,
        backend=backend,
        terms=model_terms(config, settings),
        metrics=metrics,
        max_model_len=config.max_model_len,
        owned_by=config.owned_by or "vllm",
        fallback_after_seconds=config.fallback_after_seconds,
        warm_schedule=config.warm_schedule,
        tokenizer=config.tokenizer,
    )


def _with_fallback(
    model: Model, config: ModelConfig, models: dict[str, Model], backends: BackendRegistry
) -> Model:
    fallback = config.fallback
    if fallback is None:
        return model
    if isinstance(fallback, str):
        return replace(model, fallback=models[fallback])
    server = backends.server(fallback)
    return replace(model, fallback=replace(model, backend=server, served_as=fallback.model))
