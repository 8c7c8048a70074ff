import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import type { Batch } from '../wire/output.ts';
import { type Edge, Endpoint, type EndpointHost } from './endpoint.ts';
import { serverTlsOptions, type TlsCredentials } from './tls.ts';

/** What a connection needs of its server. */
export interface ConnectionHost extends EndpointHost {
  readonly credentials: TlsCredentials | undefined;
}

/** One connection of a client: moves bytes between a socket, plain or TLS, and an endpoint. */
export class Connection implements Edge {
  readonly endpoint: Endpoint;
  /** Address of the peer, for the log. */
  readonly peer: string;
  /** When it was accepted, on the server's clock. */
  readonly sinceMs: number;
  /** Why it was closed; '' while it is open. */
  closeReason = '';
  readonly #host: ConnectionHost;
  readonly #plain: Socket;
  /** What the bytes go through: the plain socket, or TLS on it. */
  #socket: Socket;
  #awake = false;
  readonly #wakeUp = (): void => {
    this.#awake = false;
    this.endpoint.wakeUp();
  };
  readonly #receive = (chunk: Buffer): void => this.endpoint.receive(chunk);

  /** @param onClosed called once, when the socket is gone */
  constructor(socket: Socket, host: ConnectionHost, nowMs: number, onClosed: (connection: Connection) => void) {
    this.#host = host;
    this.#plain = socket;
    this.#socket = socket;
    this.sinceMs = nowMs;
    this.peer = socket.remoteAddress === undefined ? 'a local program' : `${socket.remoteAddress}:${socket.remotePort}`;
    this.endpoint = new Endpoint(host, this);
    this.#attach(socket);
    socket.on('close', () => {
      this.endpoint.gone();
      onClosed(this);
    });
    this.endpoint.begin();
  }

  write(batch: Batch): void {
    const socket = this.#socket;
    if (batch.count === 1) {
      socket.write(batch.piece(0), batch.taken);
      return;
    }
    socket.cork();
    const last = batch.count - 1;
    for (let i = 0; i < last; i++) socket.write(batch.piece(i));
    socket.write(batch.piece(last), batch.taken);
    socket.uncork();
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  wake(): void {
    if (this.#awake) return;
    this.#awake = true;
    // After the promise callbacks that are due now: what completes together goes out together.
    process.nextTick(this.#wakeUp);
  }

  startTls(): void {
    const plain = this.#plain;
    const { credentials, counters } = this.#host;
    if (credentials === undefined) {
      this.close('no credentials for TLS', false);
      return;
    }
    plain.off('data', this.#receive);
    const secure = new TLSSocket(plain, serverTlsOptions(credentials));
    let up = false;
    secure.once('secure', () => {
      // TLSSocket leaves the judgement of a client's certificate to whoever made it; a pre-shared key needs none.
      const shown = secure.getPeerCertificate();
      const byKey = credentials.keys !== undefined && secure.getCipher().name.includes('PSK');
      const error = (secure as unknown as { ssl: { verifyError(): Error | null } }).ssl.verifyError();
      const withoutCertificate = shown === undefined || Object.keys(shown).length === 0;
      if (credentials.verifyPeer && !byKey && (withoutCertificate || error !== null)) {
        counters.tlsFailures++;
        this.close(`the client's certificate is not accepted: ${error?.message ?? 'it shows none'}`, false);
        return;
      }
      up = true;
      this.endpoint.encrypted();
    });
    secure.on('error', () => {
      if (!up) counters.tlsFailures++;
    });
    this.#socket = secure;
    this.#attach(secure);
  }

  close(reason: string, graceful: boolean): void {
    this.closeReason ||= reason;
    if (graceful) this.#socket.destroySoon();
    else this.destroy();
  }

  /** Ends it whatever is left to send. */
  destroy(): void {
    this.#socket.destroy();
    this.#plain.destroy();
  }

  #attach(socket: Socket): void {
    socket.on('data', this.#receive);
    socket.on('end', () => this.endpoint.close('the client closed the connection'));
    socket.on('error', (error) => {
      this.closeReason ||= error.message;
      this.endpoint.close(error.message);
    });
  }
}
