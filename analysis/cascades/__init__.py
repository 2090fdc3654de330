"""Period doublings along training: which period a series has where, and a table of instabilities."""

from analysis.cascades.instabilities import Instability, find, onset_windows, onsets, table, visible_onsets
from analysis.cascades.periods import CATAPULT, CHAOS, GROWING, IRREGULAR, UNDEFINED, Windows, label, name
