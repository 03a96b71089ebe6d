"""Help texts of the tools."""

import argparse


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where it says something: not None, "", False or an empty mapping."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", False) or action.default == {}:
            return action.help
        return super()._get_help_string(action)
