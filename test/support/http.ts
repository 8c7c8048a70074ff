/** A web server with one file, which does what a test wants it to do wrong. */

import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Cleanup } from './temporary.ts';

export interface FileServer {
  /** Of the file. */
  readonly url: string;
  readonly origin: string;
  bytes: Uint8Array;
  etag: string | undefined;
  /** Ranges that were asked for, in order: `bytes=0-99`. */
  readonly asked: string[];
  /** Requests that are being answered, and how many there were at most. */
  busy: number;
  busiest: number;
  /** Asked before each answer: true when it has answered, or will not. */
  instead: (request: IncomingMessage, response: ServerResponse) => boolean | Promise<boolean>;
}

/** Starts a server on a free port; it goes with the test. */
export async function serveFile(t: Cleanup, bytes: Uint8Array): Promise<FileServer> {
  const server = createServer((request, response) => void answer(request, response));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const self: FileServer = {
    url: `${origin}/images/disk.img`,
    origin,
    bytes,
    etag: '"first"',
    asked: [],
    busy: 0,
    busiest: 0,
    instead: () => false,
  };
  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const { range } = request.headers;
    self.asked.push(range ?? 'all');
    self.busiest = Math.max(self.busiest, ++self.busy);
    response.on('close', () => self.busy--);
    if (await self.instead(request, response)) return;
    const match = /^bytes=(\d+)-(\d+)$/.exec(range ?? '');
    const [start, last] = [Number(match?.[1]), Math.min(Number(match?.[2]), self.bytes.length - 1)];
    const total = self.bytes.length;
    if (self.etag !== undefined) response.setHeader('etag', self.etag);
    if (start > last) {
      response.writeHead(416, { 'content-range': `bytes */${total}` }).end();
      return;
    }
    response.writeHead(206, { 'content-range': `bytes ${start}-${last}/${total}`, 'content-length': last - start + 1 });
    response.end(self.bytes.subarray(start, last + 1));
  };
  return self;
}
