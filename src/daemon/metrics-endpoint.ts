import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { formatAddress } from '../iscsi/names.ts';
import { type Address, addressError } from './address.ts';
import type { Metrics } from './metrics.ts';

/** Prometheus' scrapers are few; the limit keeps strangers from holding descriptors that sessions need. */
const MAX_CONNECTIONS = 32;

/** Serves `GET /metrics` over HTTP, and `GET /health`: 200 when all is served as it should be, else 503 with a line for each that is not. */
export class MetricsEndpoint {
  readonly address: Address;
  readonly #server: Server;

  private constructor(server: Server) {
    const { address, port } = server.address() as AddressInfo;
    this.address = { host: address, port };
    this.#server = server;
  }

  /**
   * @param problems what is not as it should be, in words; absent: nobody looks, and there is no /health
   * @throws {StorageError} as addressError
   */
  static async listen(where: Address, metrics: Metrics, problems?: () => readonly string[]): Promise<MetricsEndpoint> {
    const server = createServer({ requestTimeout: 10_000, headersTimeout: 5000 }, (request, response) => {
      const path = (request.url ?? '').replace(/\?.*$/, '');
      if (path === '/health' && problems !== undefined) {
        const lines = problems();
        response.writeHead(lines.length === 0 ? 200 : 503, { 'content-type': 'text/plain; charset=utf-8' });
        response.end(lines.length === 0 ? 'ok\n' : lines.map((line) => `${line}\n`).join(''));
        return;
      }
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

  /** Address and port as a URL has them. */
  get authority(): string {
    return formatAddress(this.address.host, this.address.port);
  }

  async close(): Promise<void> {
    await new Promise((resolve) => {
      this.#server.close(resolve);
      this.#server.closeAllConnections();
    });
  }
}
