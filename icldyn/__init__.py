"""icldyn: thousands of trained seeds beside the exact theory of in-context learning.

Public names are imported when they are first used, so that `import icldyn` (and `icldyn --help`) loads no jax, starts no
device, sets no flag and reads no file.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .checks import BadArgument as BadArgument
    from .engine import optimisers as optimisers
    from .engine.ensemble import ensemble as ensemble
    from .engine.ensemble import initial_params as initial_params
    from .engine.experiment import Experiment as Experiment
    from .engine.flow import flow as flow
    from .engine.flow import gradient_flow as gradient_flow
    from .engine.spread import spread as spread
    from .measures import autocorrelation as autocorrelation
    from .measures import fourier as fourier
    from .measures import head_coordinates as head_coordinates
    from .measures import head_scores as head_scores
    from .measures import hessian as hessian
    from .measures import icl_score as icl_score
    from .measures import llc as llc
    from .measures import modes as modes
    from .measures import over_seeds as over_seeds
    from .measures import probes as probes
    from .measures import spectra as spectra
    from .measures import subspace as subspace
    from .measures import trajectory_pca as trajectory_pca
    from .measures import which_mode as which_mode
    from .models import deep_attention as deep_attention
    from .models import heads as heads
    from .models import looped_attention as looped_attention
    from .models import softmax_attention as softmax_attention
    from .models.encoder import encoder as encoder
    from .models.encoder import encoder_flops as encoder_flops
    from .models.heads import merged as merged
    from .models.heads import separate as separate
    from .models.linear_attention import aligned as aligned
    from .models.linear_attention import from_blocks as from_blocks
    from .models.linear_attention import gaussian as gaussian
    from .models.linear_attention import given as given
    from .models.linear_attention import linear_attention as linear_attention
    from .models.modular_transformer import modular_transformer as modular_transformer
    from .models.quadratic_mlp import quadratic_mlp as quadratic_mlp
    from .models.transformer import transformer as transformer
    from .models.word_attention import word_attention as word_attention
    from .objectives import dataset as dataset
    from .objectives import held_frequencies as held_frequencies
    from .objectives import held_keys as held_keys
    from .objectives import population as population
    from .objectives import queries as queries
    from .objectives import sampled as sampled
    from .objectives import statistics as statistics
    from .objectives.attended import attended as attended
    from .objectives.modular_pairs import modular_pairs as modular_pairs
    from .objectives.next_token import next_token as next_token
    from .objectives.sentences import sentences as sentences
    from .objectives.sentences import word_start as word_start
    from .objectives.tokens import token_encoder as token_encoder
    from .objectives.tokens import token_population as token_population
    from .objectives.tokens import token_sampled as token_sampled
    from .plot.overlay import overlay as overlay
    from .plot.overlay import style as style
    from .store.run_folder import RunFolder as RunFolder
    from .study import Claim as Claim
    from .study import Study as Study
    from .study import study_names as study_names
    from .tasks.block_regression import block_regression as block_regression
    from .tasks.block_regression import disjoint as disjoint
    from .tasks.cooccurrence import cooccurrence as cooccurrence
    from .tasks.linear_regression import isotropic as isotropic
    from .tasks.linear_regression import linear_regression as linear_regression
    from .tasks.linear_regression import power_law as power_law
    from .tasks.markov import markov as markov
    from .tasks.modular import modular as modular
    from .tasks.repeated_tokens import repeated_tokens as repeated_tokens
    from .tasks.representations import representations as representations
    from .tasks.trigger_bigrams import trigger_bigrams as trigger_bigrams
    from .theory import attention_manifold as attention_manifold
    from .theory import attention_spectrum as attention_spectrum
    from .theory import context_regression as context_regression
    from .theory import descent_steps as descent_steps
    from .theory import dictionary_attention as dictionary_attention
    from .theory import finite_pool as finite_pool
    from .theory import gradient_noise as gradient_noise
    from .theory import logistic as logistic
    from .theory import looped as looped
    from .theory import markov_predictors as markov_predictors
    from .theory import mixtures as mixtures
    from .theory import modular_features as modular_features
    from .theory import null_blocks as null_blocks
    from .theory import one_layer as one_layer
    from .theory import ridge_inference as ridge_inference
    from .theory import saddles as saddles
    from .theory import word_space as word_space
    from .trajectory import Trajectory as Trajectory

_HOME = {
    "BadArgument": "checks",
    "Claim": "study",
    "Experiment": "engine.experiment",
    "RunFolder": "store.run_folder",
    "Study": "study",
    "Trajectory": "trajectory",
    "aligned": "models.linear_attention",
    "attended": "objectives.attended",
    "attention_manifold": "theory",
    "attention_spectrum": "theory",
    "autocorrelation": "measures",
    "block_regression": "tasks.block_regression",
    "context_regression": "theory",
    "cooccurrence": "tasks.cooccurrence",
    "dataset": "objectives",
    "deep_attention": "models",
    "descent_steps": "theory",
    "dictionary_attention": "theory",
    "disjoint": "tasks.block_regression",
    "encoder": "models.encoder",
    "encoder_flops": "models.encoder",
    "ensemble": "engine.ensemble",
    "finite_pool": "theory",
    "flow": "engine.flow",
    "fourier": "measures",
    "from_blocks": "models.linear_attention",
    "gaussian": "models.linear_attention",
    "given": "models.linear_attention",
    "gradient_flow": "engine.flow",
    "gradient_noise": "theory",
    "head_coordinates": "measures",
    "head_scores": "measures",
    "heads": "models",
    "held_frequencies": "objectives",
    "held_keys": "objectives",
    "hessian": "measures",
    "icl_score": "measures",
    "initial_params": "engine.ensemble",
    "isotropic": "tasks.linear_regression",
    "linear_attention": "models.linear_attention",
    "linear_regression": "tasks.linear_regression",
    "llc": "measures",
    "logistic": "theory",
    "looped": "theory",
    "looped_attention": "models",
    "markov": "tasks.markov",
    "markov_predictors": "theory",
    "merged": "models.heads",
    "mixtures": "theory",
    "modes": "measures",
    "over_seeds": "measures",
    "modular": "tasks.modular",
    "modular_features": "theory",
    "modular_pairs": "objectives.modular_pairs",
    "modular_transformer": "models.modular_transformer",
    "next_token": "objectives.next_token",
    "null_blocks": "theory",
    "one_layer": "theory",
    "optimisers": "engine",
    "overlay": "plot.overlay",
    "population": "objectives",
    "power_law": "tasks.linear_regression",
    "probes": "measures",
    "quadratic_mlp": "models.quadratic_mlp",
    "queries": "objectives",
    "repeated_tokens": "tasks.repeated_tokens",
    "representations": "tasks.representations",
    "ridge_inference": "theory",
    "saddles": "theory",
    "sampled": "objectives",
    "sentences": "objectives.sentences",
    "separate": "models.heads",
    "softmax_attention": "models",
    "spectra": "measures",
    "spread": "engine.spread",
    "statistics": "objectives",
    "study_names": "study",
    "style": "plot.overlay",
    "subspace": "measures",
    "token_encoder": "objectives.tokens",
    "token_population": "objectives.tokens",
    "token_sampled": "objectives.tokens",
    "trajectory_pca": "measures",
    "transformer": "models.transformer",
    "trigger_bigrams": "tasks.trigger_bigrams",
    "which_mode": "measures",
    "word_attention": "models.word_attention",
    "word_space": "theory",
    "word_start": "objectives.sentences",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'icldyn' has no attribute {name!r}")
    home = import_module(f".{_HOME[name]}", __name__)
    value = getattr(home, name, None)
    return import_module(f".{_HOME[name]}.{name}", __name__) if value is None else value


def __dir__() -> list[str]:
    return __all__
