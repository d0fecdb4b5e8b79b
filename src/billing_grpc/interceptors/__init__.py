"""What happens around every call. The order, outermost first, is stated here and nowhere else."""

import grpc

from billing_grpc.interceptors.error_translation import ErrorTranslation
from billing_grpc.interceptors.local_admin import LocalAdmin


def in_order() -> list[grpc.aio.ServerInterceptor]:
    """Errors are translated outside of everything else, so that no other interceptor's failure can leak."""
    return [ErrorTranslation(), LocalAdmin()]
