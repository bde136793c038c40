"""Guidance methods, one a file, all of one interface (``base.py``)."""

from dng_lightning.guidance.adaptive_negative import AdaptiveNegative
from dng_lightning.guidance.adaptive_projected import AdaptiveProjectedGuidance
from dng_lightning.guidance.attention_subtraction import AttentionSubtraction
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.cfg_negative_prompt import CFGNegativePrompt
from dng_lightning.guidance.cfg_plus_plus import CFGPlusPlus
from dng_lightning.guidance.classifier_free import ClassifierFreeGuidance
from dng_lightning.guidance.classifier_guidance import ClassifierGuidance
from dng_lightning.guidance.composable_not import ComposableNot
from dng_lightning.guidance.concept_removal import ConceptRemovalGuidance
from dng_lightning.guidance.contrastive import ContrastiveCFG
from dng_lightning.guidance.dynamic_geo_guide import DynamicGeoGuide
from dng_lightning.guidance.dynamic_negative import DynamicNegativeGuidance
from dng_lightning.guidance.dynamic_safe_denoiser import DynamicSafeDenoiser
from dng_lightning.guidance.feedback import FeedbackGuidance
from dng_lightning.guidance.geo_guide import GeoGuide
from dng_lightning.guidance.limited_interval import LimitedInterval
from dng_lightning.guidance.negative_prompting import NegativePrompting
from dng_lightning.guidance.normalized_attention import NormalizedAttention
from dng_lightning.guidance.orthogonal_attention import OrthogonalAttention
from dng_lightning.guidance.perp_neg import PerpNeg
from dng_lightning.guidance.positive_and_negative import PositiveAndNegative
from dng_lightning.guidance.safe_denoiser import SafeDenoiser
from dng_lightning.guidance.safe_latent_diffusion import SafeLatentDiffusion
from dng_lightning.guidance.safety_guided_flow import SafetyGuidedFlow
from dng_lightning.guidance.signed_negative import SignedNegative
from dng_lightning.guidance.spell import ShieldedDiffusion
from dng_lightning.guidance.unguided import Unguided
from dng_lightning.guidance.value_sign_flip import ValueSignFlip

__all__ = [
    "AdaptiveNegative",
    "AdaptiveProjectedGuidance",
    "AttentionSubtraction",
    "CFGNegativePrompt",
    "CFGPlusPlus",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "ComposableNot",
    "ConceptRemovalGuidance",
    "ContrastiveCFG",
    "DynamicGeoGuide",
    "DynamicNegativeGuidance",
    "DynamicSafeDenoiser",
    "FeedbackGuidance",
    "GeoGuide",
    "Guidance",
    "LimitedInterval",
    "NegativePrompting",
    "NormalizedAttention",
    "OrthogonalAttention",
    "PerpNeg",
    "PositiveAndNegative",
    "SafeDenoiser",
    "SafeLatentDiffusion",
    "SafetyGuidedFlow",
    "ShieldedDiffusion",
    "SignedNegative",
    "Unguided",
    "ValueSignFlip",
]
