"""The methods by their names. Light, so that the command line can list them."""

from __future__ import annotations

from importlib import import_module

from madad_lite.errors import Refused

# name -> (module, class)
FAMILY = {
    "intensity": ("intensity", "Intensity"),
    "reconstruction": ("reconstruction", "Reconstruction"),
    "untrained": ("untrained", "Untrained"),
    "dae": ("dae", "DAE"),
    "anoddpm": ("ddpm", "AnoDDPM"),
    "autoddpm": ("ddpm", "AutoDDPM"),
    "thor": ("ddpm", "THOR"),
    "pddpm": ("pddpm", "PDDPM"),
    "mddpm": ("mddpm", "MDDPM"),
    "cddpm": ("cddpm", "CDDPM"),
    "maediff": ("maediff", "MAEDiff"),
    "mdps": ("mdps", "MDPS"),
    "bernoulli": ("bernoulli", "Bernoulli"),
    "itermask": ("itermask", "IterMask"),
    "deco_diff": ("deco_diff", "DecoDiff"),
    "reflect": ("reflect", "Reflect"),
    "reflect2": ("reflect", "Reflect2"),
    "mad_ad": ("mad_ad", "MadAd"),
    "mad_ad_paper": ("mad_ad", "MadAdPaper"),
}


def method_class(name: str) -> type:
    """The class of a method (see frame.Method) by its name. Refused: no such method."""
    if name not in FAMILY:
        raise Refused(f"no such method: {name!r}; choose from {', '.join(FAMILY)}")
    module, kind = FAMILY[name]
    return getattr(import_module(f"madad_lite.family.{module}"), kind)


def recipe_settings(name: str, recipe: str) -> dict:
    """What a recipe, "lite" or "paper", sets in a method's own settings. Refused: the method has no such recipe."""
    paper = method_class(name).paper
    if recipe == "authors" or (recipe == "paper" and paper is None):
        raise Refused(f"{name}: has no recipe {recipe!r}")
    return paper if recipe == "paper" else {}
