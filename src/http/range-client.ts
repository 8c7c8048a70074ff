import http, { type IncomingMessage } from 'node:http';
import https from 'node:https';
import { setTimeout as sleep } from 'node:timers/promises';
import { LunetteError, StorageError } from '../../formats/core/errors.ts';
import { connectionFailure, PassingFailure, statusFailure } from './errors.ts';
import { type Login, loginFor } from './netrc.ts';

export interface RangeClientOptions {
  /** Connections, and so requests at the same time. Default 8. */
  readonly connections?: number | undefined;
  /** A server that says nothing for so long is given up, milliseconds. Default 30 s. */
  readonly timeoutMs?: number | undefined;
  /** How often a request is made at most, while the reason to fail may pass. Default 7. */
  readonly attempts?: number | undefined;
  /** Before the second attempt, milliseconds; doubled each time. Default 250. */
  readonly delayMs?: number | undefined;
  /** Who we are to a host. Default: what netrc says. */
  readonly login?: ((host: string) => Promise<Login | undefined>) | undefined;
  /** Ends all requests, those in flight too: ABORTED. */
  readonly signal?: AbortSignal | undefined;
}

const MAX_REDIRECTS = 5;
const MAX_DELAY_MS = 8000;
const MAX_RETRY_AFTER_MS = 30_000;
/** The first request tells a wrong address from a busy server; nobody should wait long for that. */
const FIRST_ATTEMPTS = 2;

/** What a server says of a file; the same for as long as it is the same file. */
export interface RemoteFile {
  readonly size: number;
  /** ETag, else the time of the last change; undefined when it says neither. */
  readonly version: string | undefined;
}

interface Answer {
  readonly file: RemoteFile;
  readonly body: IncomingMessage;
  /** Bytes of it. */
  readonly length: number;
}

/**
 * Reads parts of one file on a web server. The file must stay the same: what comes is held against what the server said first.
 */
export class RangeClient {
  readonly url: string;
  readonly #timeoutMs: number;
  readonly #attempts: number;
  readonly #delayMs: number;
  readonly #login: (host: string) => Promise<Login | undefined>;
  readonly #agents: { readonly http: http.Agent; readonly https: https.Agent };
  /** Where the first address led; asked again when it says no. */
  #target: URL;
  #file: RemoteFile | undefined;
  readonly #closed = new AbortController();
  readonly #stopListening: () => void;

  private constructor(url: string, options: RangeClientOptions) {
    this.url = url;
    this.#target = parseAddress(url);
    const { connections = 8, timeoutMs = 30_000, attempts = 7, delayMs = 250, login = loginFor, signal } = options;
    this.#timeoutMs = timeoutMs;
    this.#attempts = attempts;
    this.#delayMs = delayMs;
    this.#login = login;
    const settings = { keepAlive: true, maxSockets: connections, maxFreeSockets: connections };
    this.#agents = { http: new http.Agent(settings), https: new https.Agent(settings) };
    const end = (): void => this.close();
    if (signal?.aborted === true) end();
    else signal?.addEventListener('abort', end, { once: true });
    this.#stopListening = () => signal?.removeEventListener('abort', end);
  }

  /**
   * Asks for the start of a file.
   *
   * @throws {StorageError} UNSUPPORTED when the server gives no parts of files; NOT_FOUND, ACCESS, AUTH, DISCONNECTED, TIMEOUT and others
   */
  static async open(
    url: string,
    headLength: number,
    options: RangeClientOptions = {},
  ): Promise<{ client: RangeClient; head: Uint8Array }> {
    const client = new RangeClient(url, options);
    try {
      const head = await client.#patiently(FIRST_ATTEMPTS, () => client.#fetch(0, headLength));
      return { client, head };
    } catch (error) {
      client.close();
      throw error;
    }
  }

  get file(): RemoteFile {
    return this.#file as RemoteFile;
  }

  /** Reads bytes that are inside of the file. */
  async read(offset: number, length: number): Promise<Uint8Array> {
    const bytes = await this.#patiently(this.#attempts, () => this.#fetch(offset, length));
    if (bytes.length !== length) {
      throw new StorageError('PROTOCOL', `the server gives ${bytes.length} bytes where it has ${length}`, {
        path: this.url,
        offset,
      });
    }
    return bytes;
  }

  /** Requests in flight end with ABORTED. */
  close(): void {
    this.#stopListening?.();
    this.#closed.abort();
    this.#agents.http.destroy();
    this.#agents.https.destroy();
  }

  async #patiently<T>(attempts: number, act: () => Promise<T>): Promise<T> {
    const { signal } = this.#closed;
    for (let attempt = 1; ; attempt++) {
      if (signal.aborted) throw this.#interrupted();
      try {
        return await act();
      } catch (error) {
        if (signal.aborted) throw this.#interrupted();
        if (!(error instanceof PassingFailure) || attempt >= Math.min(attempts, this.#attempts)) throw error;
        const own = Math.min(this.#delayMs * 2 ** (attempt - 1), MAX_DELAY_MS);
        const asked = Math.min(error.afterMs ?? 0, MAX_RETRY_AFTER_MS);
        // Spread, so that many who wait for one server do not all come back at once.
        await sleep(Math.max(own * (0.75 + Math.random() / 2), asked), undefined, { signal }).catch(() => undefined);
      }
    }
  }

  async #fetch(offset: number, length: number): Promise<Uint8Array> {
    const answer = await this.#ask(offset, length);
    if (answer === undefined) return new Uint8Array(0);
    const bytes = new Uint8Array(answer.length);
    let at = 0;
    try {
      for await (const chunk of answer.body as AsyncIterable<Uint8Array>) {
        if (at + chunk.length > bytes.length) {
          throw new StorageError('PROTOCOL', 'the server sends more than it announced', { path: this.url, offset });
        }
        bytes.set(chunk, at);
        at += chunk.length;
      }
    } catch (error) {
      throw connectionFailure(error, this.url);
    } finally {
      answer.body.destroy();
    }
    if (at < bytes.length)
      throw new PassingFailure('DISCONNECTED', 'the server stopped in the middle', { path: this.url });
    return bytes;
  }

  /** Sends a request to where the file was last, or from its address on. @returns undefined: the file is empty */
  async #ask(offset: number, length: number): Promise<Answer | undefined> {
    const first = parseAddress(this.url);
    let address = this.#target;
    let redirects = 0;
    for (;;) {
      const response = await this.#send(address, offset, length, first);
      const { statusCode: status = 0, headers } = response;
      if (status === 206 || status === 200 || status === 416) {
        this.#target = address;
        return this.#judge(response, offset, length);
      }
      response.destroy();
      const { location } = headers;
      if ([301, 302, 303, 307, 308].includes(status) && location !== undefined) {
        if (++redirects > MAX_REDIRECTS) throw this.#broken('it leads from one address to the next without end');
        address = this.#redirected(address, location);
        continue;
      }
      // Addresses that a server redirects to may be good for a while only.
      if (status >= 400 && status < 500 && status !== 429 && redirects === 0 && address.href !== first.href) {
        address = first;
        this.#target = first;
        continue;
      }
      throw statusFailure(status, this.url, headers['retry-after']);
    }
  }

  #redirected(from: URL, location: string): URL {
    let to: URL;
    try {
      to = new URL(location, from);
    } catch {
      throw this.#broken('it redirects to what is no address');
    }
    if (to.protocol === 'http:' && from.protocol === 'https:') {
      throw new StorageError('DENIED', `it redirects to ${to.origin}, which is not encrypted`, { path: this.url });
    }
    if (to.protocol !== 'http:' && to.protocol !== 'https:') throw this.#broken(`it redirects to ${to.protocol}`);
    to.username = '';
    to.password = '';
    return to;
  }

  async #send(address: URL, offset: number, length: number, first: URL): Promise<IncomingMessage> {
    const headers: Record<string, string> = {
      range: `bytes=${offset}-${offset + length - 1}`,
      'accept-encoding': 'identity',
      'user-agent': 'lunette',
    };
    // Only to whom it was meant for, and not to where that one leads.
    const login = address.origin === first.origin ? await this.#login(address.hostname) : undefined;
    if (login !== undefined) {
      headers.authorization = `Basic ${Buffer.from(`${login.user}:${login.password}`).toString('base64')}`;
    }
    const timeoutMs = this.#timeoutMs;
    const secure = address.protocol === 'https:';
    const agent = secure ? this.#agents.https : this.#agents.http;
    const { signal } = this.#closed;
    if (signal.aborted) throw this.#interrupted();
    return new Promise((resolve, reject) => {
      const request = (secure ? https : http).request(address, { agent, headers, timeout: timeoutMs });
      const silent = (): void => {
        const seconds = timeoutMs / 1000;
        request.destroy(
          new PassingFailure('TIMEOUT', `the server has said nothing for ${seconds} s`, { path: this.url }),
        );
      };
      request.on('timeout', silent);
      request.on('error', (error) => reject(connectionFailure(error, this.url)));
      request.on('response', resolve);
      // Also one that waits for a connection, which the agent's end leaves alone.
      const end = (): void => void request.destroy();
      signal.addEventListener('abort', end, { once: true });
      request.on('close', () => signal.removeEventListener('abort', end));
      request.end();
    });
  }

  #judge(response: IncomingMessage, offset: number, length: number): Answer | undefined {
    const { statusCode: status, headers } = response;
    const range = /^bytes (?:(\d+)-(\d+)|\*)\/(\d+)$/.exec(headers['content-range'] ?? '');
    const fail = (error: LunetteError): never => {
      response.destroy();
      throw error;
    };
    if (status === 200) {
      const why =
        this.#file === undefined
          ? 'the server gives files as a whole only: it knows no range requests'
          : 'the server gives all of the file where a part was asked for';
      fail(new StorageError('UNSUPPORTED', why, { path: this.url, help: 'Download it first: curl -LO URL.' }));
    }
    if (range === null) fail(this.#broken('its answer does not say which part of the file it is'));
    const [, start, end, total] = (range as RegExpExecArray).map(Number) as [number, number, number, number];
    if (!Number.isSafeInteger(total)) fail(this.#broken('its files have a size that makes no sense'));
    this.#pin({ size: total, version: versionOf(headers) }, fail);
    if (status === 416) {
      response.destroy();
      if (total === 0) return undefined;
      throw this.#broken(`it has no bytes at ${offset}, and ${total} in all`);
    }
    const encoding = headers['content-encoding'];
    if (encoding !== undefined && encoding !== 'identity') {
      fail(this.#broken(`it encodes the file as ${encoding}, which was not asked for`));
    }
    if (start !== offset || end !== Math.min(offset + length, total) - 1) {
      fail(this.#broken(`it gives bytes ${start} to ${end} where ${length} from ${offset} on were asked for`));
    }
    return { file: this.file, body: response, length: end - start + 1 };
  }

  /** Holds what the server says of the file against what it said before. */
  #pin(now: RemoteFile, fail: (error: LunetteError) => never): void {
    const before = this.#file;
    if (before === undefined) {
      this.#file = now;
      return;
    }
    if (now.size === before.size && now.version === before.version) return;
    fail(
      new StorageError('IO', 'the file on the server was changed since it was opened', {
        path: this.url,
        help: 'What has been read does not fit together with what is there now: begin again.',
      }),
    );
  }

  #interrupted(): StorageError {
    return new StorageError('ABORTED', 'interrupted', { path: this.url });
  }

  #broken(why: string): StorageError {
    return new StorageError('PROTOCOL', `the server is not to be understood: ${why}`, { path: this.url });
  }
}

function versionOf(headers: http.IncomingHttpHeaders): string | undefined {
  return headers.etag ?? headers['last-modified'];
}

/** @throws {LunetteError} INVALID for what is no address, or has a password in it */
export function parseAddress(text: string): URL {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw new LunetteError('INVALID', 'this is no address of a web server', { path: text });
  }
  if (url.username !== '' || url.password !== '') {
    url.username = '';
    url.password = '';
    throw new LunetteError('INVALID', 'a login in an address can be seen by everybody on this machine', {
      path: url.href,
      help: 'Put it into ~/.netrc, or a file that $NETRC names: machine HOST login USER password SECRET',
    });
  }
  url.hash = '';
  return url;
}
