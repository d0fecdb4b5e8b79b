// A client in a browser as connect-web documents it, with nothing of ours: `run` makes its calls and returns what came of them.
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import { ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { Health } from "./gen/grpc_health/v1/health_pb.js";
import { BillingMode, WorkspaceBillingModeSchema } from "./gen/molecule/billing/v1/billing_mode_pb.js";
import { BillingModeService } from "./gen/molecule/billing/v1/billing_mode_service_pb.js";

const TRANSPORTS = {
  "connect, json": (options) => createConnectTransport(options),
  "connect, binary": (options) => createConnectTransport({ ...options, useBinaryFormat: true }),
  "grpc-web": (options) => createGrpcWebTransport(options),
};

async function failure(call) {
  try {
    await call;
  } catch (thrown) {
    const error = ConnectError.from(thrown);
    const current = error.findDetails(WorkspaceBillingModeSchema).map((each) => each.resolution.resolvedMode);
    return {
      code: Code[error.code],
      reasons: error.findDetails(ErrorInfoSchema).map((each) => each.reason),
      current: current.map((each) => BillingMode[each]),
    };
  }
  return { code: "none" };
}

window.run = async (kind, baseUrl, token, workspaceId) => {
  const transport = TRANSPORTS[kind]({ baseUrl });
  const client = createClient(BillingModeService, transport);
  const options = { headers: { authorization: `Bearer ${token}` }, timeoutMs: 5000 };

  const before = await client.getWorkspaceBillingMode({ workspaceId }, options);
  const etag = before.billingMode.etag;
  const change = { case: "mode", value: BillingMode.BYOK };
  const set = await client.setWorkspaceBillingMode({ workspaceId, change, etag, reason: kind }, options);
  const log = await client.listBillingModeChanges({ workspaceId }, options);
  const statuses = [];
  for await (const answer of createClient(Health, transport).watch({}, { timeoutMs: 5000 })) {
    statuses.push(answer.status);
    break;
  }
  return {
    before: BillingMode[before.billingMode.resolution.resolvedMode],
    after: BillingMode[set.billingMode.resolution.resolvedMode],
    reason: log.changes[0].reason,
    stale: await failure(client.setWorkspaceBillingMode({ workspaceId, change: { case: "inherit", value: {} }, etag }, options)),
    denied: await failure(client.resolveBillingMode({})),
    statuses,
  };
};
