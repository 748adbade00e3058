"""For `make docs`: in a docstring, "a, b: what both are" describes two arguments, which mkdocstrings knows by one name a line only."""

import re

import griffe

SHARED_ENTRY = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)$", re.MULTILINE)


class SplitNames(griffe.Extension):
    """Gives each argument that shares its description with others a line of its own."""

    def on_instance(self, *, obj, **kwargs):
        if obj.docstring is not None and "Args:" in obj.docstring.value:
            before, heading, after = obj.docstring.value.partition("Args:")
            obj.docstring.value = before + heading + SHARED_ENTRY.sub(split_entry, after)


def split_entry(match):
    indent, names, text = match.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
