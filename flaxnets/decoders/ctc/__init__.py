"""Connectionist temporal classification: loss, alignment, search, language model, lexicon."""

from flaxnets.decoders.ctc.alignment import Spans, align
from flaxnets.decoders.ctc.automaton import Automaton
from flaxnets.decoders.ctc.character_ngram import CharacterNgram, train_ngram
from flaxnets.decoders.ctc.lexicon import make_lexicon
from flaxnets.decoders.ctc.loss import ctc_losses, fits, required_steps
from flaxnets.decoders.ctc.search import Transcripts, beam_search, greedy

__all__ = [
    "Automaton",
    "CharacterNgram",
    "Spans",
    "Transcripts",
    "align",
    "beam_search",
    "ctc_losses",
    "fits",
    "greedy",
    "make_lexicon",
    "required_steps",
    "train_ngram",
]
