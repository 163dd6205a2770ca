"""Every family of the host that has a tiny model here."""

from families.image_models import IMAGE_MODELS
from families.video_models import VIDEO_MODELS

FAMILIES = IMAGE_MODELS | VIDEO_MODELS
