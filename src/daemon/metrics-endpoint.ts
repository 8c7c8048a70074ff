import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type Address, addressError } from './address.ts';
import type { Metrics } from './metrics.ts';

/** Prometheus' scrapers are few; the limit keeps strangers from holding descriptors that sessions need. */
const MAX_CONNECTIONS = 32;

/** Serves `GET /metrics` over HTTP. */
export class MetricsEndpoint {
  readonly address: Address;
  readonly #server: Server;

  private constructor(server: Server) {
    const { address, port } = server.address() as AddressInfo;
    this.address = { host: address, port };
    this.#server = server;
  }

  /** @throws {StorageError} as addressError */
  static async listen(where: Address, metrics: Metrics): Promise<MetricsEndpoint> {
    const server = createServer({ requestTimeout: 10_000, headersTimeout: 5000 }, (request, response) => {
      const path = (request.url ?? '').replace(/\?.*$/, '');
      if (path !== '/metrics' || (request.method !== 'GET' && request.method !== 'HEAD')) {
        response.writeHead(404, { 'content-type': 'text/plain' }).end('lunette serves its metrics at /metrics\n');
        return;
      }
      metrics.text().then(
        (text) => response.writeHead(200, { 'content-type': metrics.contentType }).end(text),
        (error: unknown) => response.writeHead(500, { 'content-type': 'text/plain' }).end(`${error}\n`),
      );
    });
    server.maxConnections = MAX_CONNECTIONS;
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error) => reject(addressError(error, where, 'the metrics')));
      server.listen(where.port, where.host, resolve);
    });
    return new MetricsEndpoint(server);
  }

  async close(): Promise<void> {
    await new Promise((resolve) => {
      this.#server.close(resolve);
      this.#server.closeAllConnections();
    });
  }
}
