"""Kinetics-400 (Kay et al., 2017, arXiv:1705.06950)."""

from datamodules.published_clips import PublishedClips


class K400(PublishedClips):
    """Kinetics-400, 400 classes. Its number of videos depends on what was still to be had when a copy was made."""

    count = 400
