"""Routes of the reference project."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from mailbox_project import views

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="mailbox:docs")),
    path("admin/", admin.site.urls),
    path("chat/", views.chat, name="chat"),
    path("chat/<uuid:thread_id>/", views.chat, name="conversation"),
    path("v1/", include("mailbox_app.api.v1.urls")),
    path("health/", include("mailbox_app.api.v1.health")),
    path("metrics", include("mailbox_app.api.v1.metrics")),
]
