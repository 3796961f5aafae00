"""Stanford's PTBTokenizer for scoring captions, without Java.

Papers score captions tokenised by pycocoevalcap: ``PTBTokenizer -preserveLines -lowerCase`` of
CoreNLP 3.4.1, from whose tokens a list of punctuation is removed. This is an independent
implementation of that behaviour, derived from the original's answers. As in any lexer the longest
match wins, including its required right context, and among equally long ones the first rule.

Deviations: letters are those of today's Unicode, and outside of Latin, Greek and Cyrillic text they
keep their combining marks and joiners (the original drops scripts added since Java 5, joiners, and
marks of Gurmukhi, Kannada, Khmer, Burmese, Tibetan and others, which splits words); punctuation of
other scripts, such as the danda and the Arabic comma, is dropped; an accented letter written as an
HTML entity also joins words after a digit or a hyphen.
"""

from collections.abc import Iterator

import regex

# pycocoevalcap's list. Its brackets are in capitals, so the lower-cased tokens -lrb- … remain.
PUNCTUATION = frozenset(
    {*"'`.?!,:-;", "''", "``", "--", "...", "-LRB-", "-RRB-", "-LCB-", "-RCB-"},
)

LINE_BREAKS = regex.compile("[\n\r\v\f\x85\u2028\u2029]")

_NORMAL = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **dict.fromkeys("\x92’›", "'"),
    **dict.fromkeys("\x91‘‛‹", "`"),
    **dict.fromkeys('"\x94”»', "''"),
    **dict.fromkeys("\x93“«", "``"),
    **dict.fromkeys(["\x96", "\x97", "–", "—", "―", "--", "---", "----"], "--"),
    **dict.fromkeys(["&mdash;", "&ndash;", "&MD;"], "--"),
    **dict.fromkeys("\x80¤₠€", "$"),
    **{"£": "#", "¢": "cents", "…": "...", "\xad": "-", "&quot;": "''", "&apos;": "'"},
    **dict.fromkeys(["&amp;", "&Amp;", "&AMP;"], "&"),
    **dict.fromkeys(["&lt;", "&Lt;", "&LT;"], "<"),
    **dict.fromkeys(["&gt;", "&Gt;", "&GT;"], ">"),
    **{"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
}


def _any_case(words: str) -> str:
    """Returns alternatives of a regular expression; small letters also match capitals."""
    both = regex.sub("[a-z]", lambda letter: f"[{letter[0]}{letter[0].upper()}]", words)
    return "|".join(both.split())


# Abbreviations keep their full stop: those that may end a sentence, and those before names and
# numbers.
_ENDING = _any_case(
    """ala al apr ariz assn aug bhd bldg blvd bros calif colo conn corp cos? ct dak dec esq est
    etc ext feb fla fri ga inc ind intl jan jr jul jun kans? ky ltd mar md mich minn mon mont mo
    neb nev nov oct okla penn plc rd rt sept? seq sq sr sys tel tenn thurs thu tues? univ va vt
    wed wisc? wyo Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"""
)
_ENDING += "|[pP]?[pP]t[ey]s?"
_LEADING = _any_case(
    """adj adm adv alex assoc asst attys? ave brig capt cf cie cmdr col comdr cpl dept det drs?
    elec ens ft gen govs? hon insp invt jos lieut lt maj messrs mlle mme mrs? msgr ms mt natl
    pfc ph pres profs? pvt reps? rev sens? sfc sgt spc ste? supts? treas vs wm"""
)
_LEADING += "|[mM]fg|[mM]tg"
_BEFORE_NUMBERS = _any_case("art ca figs? nos? op pp prop")
# After an initial these words open a sentence, so the full stop does not belong to the initial.
_OPENING = """A About According Additionally After An As At But Cannot Earlier He Her Here However
    If In It Last Many More Now Once One Other Our She Since So Some Such That The Their Then
    There These They This We What When While Yet You"""
_EXTENSIONS = _any_case(
    """bat bmp bz2 cgi cpp c dll docx? exe gif gz html? h jar java jpe?g mov pdf php pl png ppt ps
    py sql tar txt wav x xml zip"""
)

_APOSTROPHE = r"(?:['\x92’]|&apos;)"
_ANY_APOSTROPHE = r"(?:['\x91\x92`‘’‛]|&apos;)"
_NUMERALS = r"²³¹¼-¾\u2070\u2074-\u2079\u2080-\u2089\u2150-\u2189\u2460-\u24ff\u2776-\u2793\u3007"
_MARKS = (
    r"\u0300-\u036f\u064b-\u065e\u0901-\u0903\u093c\u093e-\u094d\u0e31\u0e34-\u0e3a\u0e47-\u0e4e"
)
# Marks of other scripts, joiners, and Armenian signs inside of words, all after a letter.
_FURTHER = r"[\p{M}\u200c\u200d\u055b\u055c\u055e]"
_FURTHER_MARK = rf"{_FURTHER}(?<=\p{{L}}{_FURTHER}+)(?<![\p{{Latin}}\p{{Greek}}\p{{Cyrillic}}].)"
_LETTER = (
    rf"(?:(?![\d{_NUMERALS}])[\p{{L}}\p{{N}}]|[{_MARKS}\xad]|{_FURTHER_MARK}"
    r"|&[aeiouAEIOU](?:acute|grave|uml);)"
)
_ALNUM = rf"(?:{_LETTER}|\d)"
_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"
_REDUCED = rf"{_APOSTROPHE}(?:{_any_case('m s d re ve ll')})"
_NOT = rf"[nN]{_ANY_APOSTROPHE}[tT]"
_PREFIX = rf"[dDoOlL]{_ANY_APOSTROPHE}{_ALNUM}"
_JOINED = rf"(?:{_PREFIX})?{_ALNUM}+(?:[-_](?:{_PREFIX})?{_ALNUM}+)*"
_HYPHENATED = r"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\xad]+))+"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])*"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
_URL = r"[^ \t\n\"<>|()]{2,}(?<![.!?{},-])"
_MAIL = r"[^ \t\n\"<>|(){}\xa0]"
_QUOTES = r"`‘’‚‛“”\x91-\x94„‟‹›«»"
_SYMBOLS = (
    r"!-/:-@\[-^`{-~\xad\x80\x91-\x97¡-©«¬®-´¶-¹»-¿×÷\u2013-\u2023…\u2030-\u2042⁄⁰⁴-⁾₀-₎₠₤€"
    r"℀℁℃-℆℈℉№-℘℞-℣℥℧℩℮\u2140-\u2144\u214a-\u214d\u214f⅓-⅞←-\u2bff、。〒・！-／：-＠［-｀｛-･￠￡￥￦"
)

# The token is the whole match, or its first group if the rule has a right context.
_RULES = tuple(
    regex.compile(rule)
    for rule in (
        # tags
        rf"<{_NAME}(?:\s+{_NAME}(?:=(?:'[^'\n]*'|\"[^\"\n]*\"))?)*\s*/?>",
        rf"</{_NAME}\s*>|<[!?][A-Za-z-][^<>\n]*>",
        # two words written as one, and reduced forms
        rf"({_any_case('can')})(?:{_any_case('not')})",
        rf"({_any_case('gon wan')})(?:{_any_case('na')})",
        rf"({_any_case('got')})(?:{_any_case('ta')})",
        rf"({_any_case('lem gim')})(?:{_any_case('me')})",
        rf"('[tT])(?:{_any_case('is was')})",
        rf"({_WORD}){_REDUCED}",
        rf"([A-Za-z]*[A-MO-Za-mo-z]){_NOT}",
        rf"({_REDUCED})[^A-Za-z]",
        # words
        _WORD,
        rf"{_ALNUM}+",
        rf"((?:{_ENDING})\.)[\s\S]{{2}}",
        *(rf"({word}\.)[,;:]" for word in (_WORD, _JOINED, _HYPHENATED)),
        _JOINED,
        _HYPHENATED,
        rf"{_SLASHED}(?:\\?/{_SLASHED}){{1,2}}",
        r"[A-Z]+(?:(?:&(?:amp;)?|\+)[A-Z]+)+",
        # words with an apostrophe
        rf"{_LETTER}+[aeiouyAEIOUY]{_ANY_APOSTROPHE}[aeiouA-Z]{_LETTER}*",
        rf"[A-HJ-XZn]{_ANY_APOSTROPHE}{_LETTER}{{2,}}",
        rf"{_APOSTROPHE}(?:[nN]{_APOSTROPHE}?|[eE][mM]|[tT]ill?|[cC]ause|[2-9]0[sS])",
        rf"({_APOSTROPHE}\d\d)\s",
        rf"(?:[dDjJlL]|{_any_case('ol dunkin somethin')}){_APOSTROPHE}",
        rf"[yY]{_APOSTROPHE}(?=[A-Za-z])",
        rf"[cC]'mon|[oO]{_APOSTROPHE}[oO]|[eE]'er|[eE]v'ry|[sS]'mores|[cC]ap'n|c'est",
        r"(')[A-Za-z][^ \t\n\xa0]",
        _REDUCED,
        _NOT,
        # addresses
        rf"https?://{_URL}",
        rf"www(?:\.[^ \t\n\"<>|.!?(){{}},]+)+\.[a-zA-Z]{{2,4}}(?:/{_URL})?",
        rf"www(?:\.[^ \t\n\"<>|.!?(){{}},/]+)+\.[a-zA-Z]{{2,4}}/{_URL}",
        rf"(?:[a-z#%&*+~\x7f-\U0010ffff]+\.)+(?:com|net|org|edu)(?:/{_URL})?",
        rf"<?[A-Za-z0-9]{_MAIL}*@(?!\.)(?:(?!\.\.){_MAIL})+(?<!\.)>?",
        r"@+",
        rf"@[A-Za-z_][A-Za-z0-9_]*|\#{_LETTER}+",
        rf"S&(?:amp;)?(?:P-500|Ls)|C\.D\.s|(?:{_any_case('pro anti')})-",
        # numbers
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
        r"[-+]?(?:\d*(?:[.,:\xad]\d+)+|\d+)",
        r"(?:\d{1,4}[- \xa0])?\d{1,4}(?:\\?/|⁄)\d{1,4}",
        r"[⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+)",
        r"(?:\(\d{2,3}\)[ \xa0]?|\+{0,2}\d{2,4}[- \xa0](?:\d{2,4}[- \xa0])?)"
        r"\d{3,4}[- \xa0]?\d{3,5}",
        r"\+{0,2}\d{2,4}(?:\.\d{2,4})?\.\d{3,4}\.\d{3,5}",
        r"[A-Z]*\$|\#+|[cCfF]\#",
        # abbreviations
        r"[pP][hH]\.[dD]\.",
        rf"(?:{_ENDING}|{_LEADING})\.",
        rf"((?:{_BEFORE_NUMBERS})\.) ?\d",
        rf"([A-Za-z])\.\s+(?:(?:{'|'.join(_OPENING.split())})\s|M[rs]\.|</?[A-Za-z]+>)",
        rf"{_INITIALS}\.",
        rf"({_ALNUM}+(?:\.{_ALNUM}+)*\.(?:{_EXTENSIONS}))[\s.,!?]",
        # smileys
        r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]",
        r"[-^x=~<>']_[-^x=~<>']",
        r"\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[-^x=~<>'`]\)",
        # marks
        r"-(?:[LR][RCS]B|[lr][rcs]b)-",
        r"w/o(?![A-Za-z])",
        r"\.{3,5}|(?:\.[ \xa0]){2,4}\.",
        r"-+",
        r"[?!]+",
        r"\*+|(?:\\\*){1,3}",
        r"<<|>>",
        r"_+",
        r"''",
        rf"[{_QUOTES}]{{1,2}}",
        r"&(?:[aA][mM][pP]|[lL][tT]|[gG][tT]|quot|apos|[mn]dash|MD|#\d+);",
        rf"[{_SYMBOLS}]",
    )
)
_PLAIN = regex.compile(r"([A-Za-z]{2,}|[aA])(?=[ \n])|([A-Za-z]{2,}),(?=[ \n])|(?:[ \n]|&nbsp;)+")
_CONTRACTED = frozenset(["cannot", "gonna", "gotta", "wanna", "lemme", "gimme"])


def tokenize(caption: str, *, following: str = "A ") -> list[str]:
    """Splits a caption into the tokens that the scorers compare.

    >>> tokenize("A man's dog isn't here.")
    ['a', 'man', "'s", 'dog', 'is', "n't", 'here']

    Args:
        caption: one caption; line breaks count as spaces.
        following: beginning of the caption that the original would read next. It matters only
            after a final initial, which loses its full stop before "A …", "The …" and the like.

    Returns:
        Lower-cased tokens without pycocoevalcap's punctuation, possibly none.

    Raises:
        ValueError: ``caption`` is not a string.
    """
    if not isinstance(caption, str):
        raise ValueError(f"caption: expected a string, received {caption!r}")
    text = LINE_BREAKS.sub(" ", caption)
    return [t for t in _tokens(f"{text}\n{following}", len(text)) if t not in PUNCTUATION]


def _tokens(text: str, end: int) -> Iterator[str]:
    """Yields all tokens that begin before ``end``, including punctuation."""
    position = 0
    while position < end:
        plain = _PLAIN.match(text, position)
        if plain:
            word = (plain[1] or plain[2] or "").lower()
            if word not in _CONTRACTED:
                position = plain.end()
                if word:
                    yield word
                continue
        token, longest = "", 0
        for rule in _RULES:
            match = rule.match(text, position)
            if match and match.end() - position > longest:
                longest = match.end() - position
                token = match[1] if rule.groups else match[0]
        if token:
            yield _normalise(token)
        position += len(token) or 1


def _normalise(token: str) -> str:
    if token in _NORMAL:
        return _NORMAL[token]
    if token[0] == "." and set(token) <= set(". \xa0"):
        return "..." if len(token) > 1 else "."
    if regex.fullmatch(rf"[{_QUOTES}]+", token):
        return "".join(_NORMAL.get(quote, quote) for quote in token)
    if regex.fullmatch(rf"{_REDUCED}|{_NOT}", token):
        token = regex.sub(_ANY_APOSTROPHE, lambda mark: _NORMAL.get(mark[0], mark[0]), token)
    if token[0] in "(:;=<>":
        token = token.replace("(", "-lrb-").replace(")", "-rrb-")
    if regex.fullmatch("[A-Z][A-Z&amp;+]+", token):
        token = token.replace("&amp;", "&")
    return token.replace(" ", "\xa0").replace("\xad", "").lower()
