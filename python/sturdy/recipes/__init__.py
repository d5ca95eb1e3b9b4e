"""Recipes: train and evaluate a network as a paper describes it, from the ``sturdy`` command or from Python.

One file per paper (:mod:`sturdy.recipes.pushpull`) fills in defaults; a shared engine does the work. This
package imports nothing heavy, so that ``sturdy --help`` answers at once.
"""
