"""The OpenAPI document of this API alone, and a page to read it on."""

from collections.abc import Callable
from typing import Any, TypeVar

from django.conf import settings
from django.templatetags.static import static
from drf_spectacular.extensions import OpenApiAuthenticationExtension, OpenApiSerializerFieldExtension
from drf_spectacular.generators import EndpointEnumerator, SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent
from drf_spectacular.renderers import OpenApiJsonRenderer, OpenApiJsonRenderer2, OpenApiYamlRenderer
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from drf_spectacular.views import SpectacularSwaggerView
from rest_framework.renderers import TemplateHTMLRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from mailbox_app.api.v1 import errors, idempotency
from mailbox_app.api.v1.base import PublicView
from mailbox_app.api.v1.serializers import ProblemSerializer

OperationT = TypeVar("OperationT", bound=Callable[..., Any])

TITLE = "Mailbox"
DESCRIPTION = """Durable runs for AI agents and other long jobs: what is accepted is executed, or ends where an
operator sees it.

Every refusal is [problem details](https://www.rfc-editor.org/rfc/rfc9457) with a stable `code`. A creating POST with an
`Idempotency-Key` can be repeated without harm."""

IDEMPOTENCY_KEY = OpenApiParameter(
    idempotency.HEADER,
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description=(
        "1 to 200 visible ASCII characters of your own. A repeat with the same key and body within 24 hours gets the "
        f"first answer again, with `{idempotency.REPLAYED}: true`; another body is refused with 409."
    ),
)
RUN_ID = OpenApiParameter("run_id", OpenApiTypes.UUID, OpenApiParameter.PATH)
THREAD_ID = OpenApiParameter("thread_id", OpenApiTypes.UUID, OpenApiParameter.PATH)
MESSAGE_ID = OpenApiParameter("message_id", OpenApiTypes.UUID, OpenApiParameter.PATH)
DISPATCH_ID = OpenApiParameter("dispatch_id", OpenApiTypes.UUID, OpenApiParameter.PATH)
CURSOR = OpenApiParameter("cursor", str, description="`next_cursor` of the page before, with the same filters.")
CREATED = (
    OpenApiParameter("created_after", OpenApiTypes.DATETIME, description="Made at this time or later (RFC 3339)."),
    OpenApiParameter("created_before", OpenApiTypes.DATETIME, description="Made before this time (RFC 3339)."),
)
LIMIT = OpenApiParameter("limit", int, description="1 to 200, 50 unless given; brought into that range.")
STOP_WAIT = OpenApiParameter(
    "wait",
    float,
    description="Seconds to wait for the worker that is asked to stop, 0 unless given; brought into 0 to the setting "
    "`cancel_wait_seconds`.",
)
LOCATION = OpenApiParameter(
    "Location", OpenApiTypes.STR, OpenApiParameter.HEADER, description="Where it is.", response=[201, 202]
)
REPLAYED = OpenApiParameter(
    idempotency.REPLAYED,
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description="`true` on the answer to a repeat.",
    response=[201, 202],
)

# What any route may answer.
_ALWAYS = (401, 403, 406, 429, 500, 503)


def operation(*refusals: int, responses: dict[Any, Any], **described: Any) -> Callable[[OperationT], OperationT]:
    """Describe a route: its answers, and the statuses of its refusals beside those of any route."""
    problems = {
        (status, errors.MEDIA_TYPE): OpenApiResponse(
            ProblemSerializer,
            description=", ".join(f"`{code}`" for code, kind in errors.PROBLEMS.items() if kind.status == status),
        )
        for status in sorted({*refusals, *_ALWAYS})
    }

    def describe(method: OperationT) -> OperationT:
        # Else the decorator would build on the project's DEFAULT_SCHEMA_CLASS.
        method.schema = AutoSchema  # type: ignore[attr-defined]
        described_method: OperationT = extend_schema(responses={**responses, **problems}, **described)(method)
        return described_method

    return describe


class _Enumerator(EndpointEnumerator):
    def should_include_endpoint(self, path: str, callback: Any) -> bool:
        """Only routes of this API, whatever else the project serves."""
        cls = getattr(callback, "cls", None)
        return bool(cls and issubclass(cls, PublicView) and super().should_include_endpoint(path, callback))


class _Generator(SchemaGenerator):
    endpoint_inspector_cls = _Enumerator


# The document of each mount point; it cannot change while the process lives.
_documents: dict[tuple[str, Any], dict[str, Any]] = {}


def document(*, prefix: str = "", urlconf: Any = None) -> dict[str, Any]:
    """The document of this API as it is mounted in the urlconf (the project's unless given)."""
    urlconf = urlconf or settings.ROOT_URLCONF
    if (prefix, urlconf) not in _documents:
        drawn = _Generator(urlconf=urlconf).get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
        drawn["info"] = {"title": TITLE, "version": "1", "description": DESCRIPTION}
        if prefix:
            drawn["servers"] = [{"url": prefix}]
        _documents[prefix, urlconf] = drawn
    return _documents[prefix, urlconf]


def printed() -> str:
    """The document of this project in YAML."""
    return OpenApiYamlRenderer().render(document(), renderer_context={}).decode()  # type: ignore[no-untyped-call,no-any-return]


class SchemaView(PublicView):
    # In no document; `extend_schema` would build on the project's DEFAULT_SCHEMA_CLASS.
    schema = None
    renderer_classes = (OpenApiJsonRenderer2, OpenApiJsonRenderer, OpenApiYamlRenderer)

    def get(self, request: Request) -> Response:
        """The document; JSON unless YAML (application/vnd.oai.openapi) is asked for."""
        return Response(
            document(
                prefix=str(request.META.get("SCRIPT_NAME", "")),
                urlconf=getattr(request, "urlconf", settings.ROOT_URLCONF),
            )
        )


class DocsView(PublicView, SpectacularSwaggerView):
    """Swagger UI from this server's own static files: the page loads nothing from elsewhere."""

    schema = None
    renderer_classes = [TemplateHTMLRenderer]
    title = TITLE

    def _get_schema_url(self, request: Request) -> str:
        return self.link("schema")

    @staticmethod
    def _swagger_ui_resource(filename: str) -> str:
        return static(f"drf_spectacular_sidecar/swagger-ui-dist/{filename}")

    @staticmethod
    def _swagger_ui_favicon() -> str:
        return static("drf_spectacular_sidecar/swagger-ui-dist/favicon-32x32.png")


class _BearerScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "mailbox_app.api.v1.permissions.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, Any]:
        return {"type": "http", "scheme": "bearer"}


class _LoginScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "mailbox_app.api.v1.permissions.LoginAuthentication"
    name = "cookieAuth"

    def get_security_definition(self, auto_schema: Any) -> dict[str, Any]:
        return {"type": "apiKey", "in": "cookie", "name": settings.SESSION_COOKIE_NAME}


class _WordComponent(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    target_class = "mailbox_app.api.v1.fields.Word"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> Any:
        name, shown = self.target.named, {"type": "string", "enum": [str(word) for word in self.target.words]}
        component = ResolvedComponent(name=name, type=ResolvedComponent.SCHEMA, schema=shown, object=name)  # type: ignore[no-untyped-call]
        auto_schema.registry.register_on_missing(component)
        return component.ref


class _PassedObject(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    target_class = "mailbox_app.api.v1.fields.Passed"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> Any:
        component = auto_schema.resolve_serializer(self.target.shape, direction)
        return component.ref
