/** An NBD server that says what a test wants it to say, true or not. */

import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { clientFlags, u32, u64 } from './nbd-endpoint.ts';
import { type Cleanup, temporaryDirectory } from './temporary.ts';

/** A request as it came, in either form. */
export interface SeenRequest {
  readonly flags: number;
  readonly type: number;
  readonly cookie: number;
  readonly offset: number;
  readonly length: number;
  readonly payload: Buffer;
}

export interface Script {
  /** Bytes that it greets with. Default: fixed newstyle, no zeroes. */
  readonly hello?: Buffer;
  /** Answers an option, fully. Default: `honestOption`. */
  readonly option?: (option: number, data: Buffer) => Buffer;
  /** Answers a request; what it returns is sent as it is. */
  readonly request?: (request: SeenRequest, socket: Socket) => Buffer | undefined;
  /** Requests have long headers: what `option` has agreed to. */
  readonly extended?: boolean;
}

export const HELLO = Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), Buffer.from([0, 3])]);
export const SCRIPTED_SIZE = 1024 * 1024;

export function optionReply(option: number, type: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  return Buffer.concat([Buffer.from('0003e889045565a9', 'hex'), u32(option), u32(type), u32(data.length), data]);
}

/** INFO_EXPORT. */
export function exportInfo(size: number | bigint, flags: number): Buffer {
  return Buffer.concat([Buffer.from([0, 0]), u64(size), Buffer.from([flags >> 8, flags & 255])]);
}

/** Flags of an honest server: it flushes, zeroes and may have holes. */
export const FLAGS = 0x0001 | 0x0004 | 0x0040;

/** What a server without extended headers says: structured replies, one context, 1 MiB. */
export function honestOption(option: number): Buffer {
  switch (option) {
    case 8:
      return optionReply(8, 1);
    case 10:
      return Buffer.concat([
        optionReply(10, 4, Buffer.concat([u32(1), Buffer.from('base:allocation')])),
        optionReply(10, 1),
      ]);
    case 7:
      return Buffer.concat([optionReply(7, 3, exportInfo(SCRIPTED_SIZE, FLAGS)), optionReply(7, 1)]);
    case 1:
      return Buffer.concat([u64(SCRIPTED_SIZE), Buffer.from([FLAGS >> 8, FLAGS & 255])]);
    default:
      return optionReply(option, 0x80000001);
  }
}

export class ScriptedServer {
  readonly url: string;
  /** Options as they came. */
  readonly options: number[] = [];
  readonly requests: SeenRequest[] = [];
  /** Connections that have ended, how each came to say goodbye last. */
  readonly sockets = new Set<Socket>();
  connections = 0;

  private constructor(url: string) {
    this.url = url;
  }

  static async start(t: Cleanup, script: Script = {}): Promise<ScriptedServer> {
    const path = join(await temporaryDirectory(t), 's');
    const server = new ScriptedServer(`nbd+unix:///disk?socket=${path}`);
    const listener = createServer((socket) => {
      server.connections++;
      server.sockets.add(socket);
      socket.on('close', () => server.sockets.delete(socket));
      socket.on('error', () => undefined);
      server.#serve(socket, script);
    });
    await new Promise<void>((resolve) => listener.listen(path, resolve));
    t.after(() => {
      listener.close();
      for (const socket of server.sockets) socket.destroy();
    });
    return server;
  }

  #serve(socket: Socket, script: Script): void {
    let state: 'flags' | 'options' | 'requests' = 'flags';
    let input = Buffer.alloc(0);
    const head = script.extended === true ? 32 : 28;
    socket.write(script.hello ?? HELLO);
    socket.on('data', (bytes: Buffer) => {
      input = Buffer.concat([input, bytes]);
      for (;;) {
        if (state === 'flags') {
          if (input.length < clientFlags.length) return;
          input = input.subarray(4);
          state = 'options';
        } else if (state === 'options') {
          if (input.length < 16 || input.length < 16 + input.readUInt32BE(12)) return;
          const option = input.readUInt32BE(8);
          const data = input.subarray(16, 16 + input.readUInt32BE(12));
          input = input.subarray(16 + data.length);
          this.options.push(option);
          const answer = (script.option ?? honestOption)(option, data);
          if (answer.length > 0) socket.write(answer);
          if (option === 7 && answer.length >= 20 && answer.readUInt32BE(answer.length - 8) === 1) state = 'requests';
          if (option === 1) state = 'requests';
        } else {
          if (input.length < head) return;
          const length = head === 32 ? Number(input.readBigUInt64BE(24)) : input.readUInt32BE(24);
          const type = input.readUInt16BE(6);
          const payload = type === 1 ? length : 0;
          if (input.length < head + payload) return;
          const request: SeenRequest = {
            flags: input.readUInt16BE(4),
            type,
            cookie: Number(input.readBigUInt64BE(8)),
            offset: Number(input.readBigUInt64BE(16)),
            length,
            payload: Buffer.from(input.subarray(head, head + payload)),
          };
          input = input.subarray(head + payload);
          this.requests.push(request);
          const answer = script.request?.(request, socket);
          if (answer !== undefined && !socket.destroyed) socket.write(answer);
        }
      }
    });
  }
}
