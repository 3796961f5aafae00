"""Caption decoders, and the search for captions.

A decoder maps regions of an image and the words so far to logits of the next word; ``decoder.py``
describes its interface, ``search.py`` the search. The search methods themselves are
``greedy_search`` and ``sample`` (``sampling.py``) and ``beam_search`` (``beam_search.py``).
"""

from flaxnets.decoders.cells import MaxoutLSTMCell
from flaxnets.decoders.decoder import CaptionDecoder, CaptionOutputs, Memory
from flaxnets.decoders.hypotheses import BOS, EOS, PAD, UNK, DecodeStep, Hypotheses
from flaxnets.decoders.search import SearchOptions, ensemble, search_captions
from flaxnets.decoders.show_and_tell import FactoredLRCN, ShowAndTell
from flaxnets.decoders.show_attend_tell import Att2in, HardAttention, SoftAttention
from flaxnets.decoders.up_down import UpDown

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "UNK",
    "Att2in",
    "CaptionDecoder",
    "CaptionOutputs",
    "DecodeStep",
    "FactoredLRCN",
    "HardAttention",
    "Hypotheses",
    "MaxoutLSTMCell",
    "Memory",
    "SearchOptions",
    "ShowAndTell",
    "SoftAttention",
    "UpDown",
    "ensemble",
    "search_captions",
]
