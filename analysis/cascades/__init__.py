"""Period doublings along training: which period a series has where, and a table of instabilities."""

from analysis.cascades.instabilities import Instability, find, onset_windows, onsets, table
from analysis.cascades.periods import CHAOS, GROWING, IRREGULAR, UNDEFINED, Windows, label, name
