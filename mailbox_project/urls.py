"""Routes of the reference project."""

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

urlpatterns = [
    path("", RedirectView.as_view(url="/v1/docs")),
    path("admin/", admin.site.urls),
]
