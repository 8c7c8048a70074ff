import { sendDatagram } from '../io/native.ts';
import type { ServerLog } from './log.ts';

/**
 * What a service tells systemd about itself (sd_notify(3)): that it is ready, what it does, that it is alive. Does nothing where nobody
 * listens.
 */
export class SystemdNotifier {
  readonly #socket: string | undefined;
  readonly #watchdogMs: number | undefined;
  readonly #log: ServerLog;
  #timer: NodeJS.Timeout | undefined;

  /** @param env of the process: NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID */
  constructor(env: NodeJS.ProcessEnv, log: ServerLog) {
    const socket = env.NOTIFY_SOCKET;
    this.#socket = socket !== undefined && /^[/@]./.test(socket) ? socket : undefined;
    this.#log = log;
    const microseconds = Number(env.WATCHDOG_USEC);
    const forUs = env.WATCHDOG_PID === undefined || Number(env.WATCHDOG_PID) === process.pid;
    this.#watchdogMs = forUs && microseconds > 0 ? microseconds / 1000 : undefined;
    if (this.#socket !== undefined && sendDatagram === undefined) {
      log.warn({}, 'systemd waits to hear that the service is ready, which needs the native addon: use Type=exec');
    }
  }

  /** The service answers. From here on the watchdog hears from the event loop, so a loop that hangs is noticed. */
  ready(status: string): void {
    this.#send(`READY=1\nSTATUS=${status}\nMAINPID=${process.pid}`);
    if (this.#watchdogMs === undefined || this.#socket === undefined) return;
    // Twice in the time that is given, as sd_watchdog_enabled(3) recommends.
    this.#timer = setInterval(() => this.#send('WATCHDOG=1'), this.#watchdogMs / 2);
    this.#timer.unref();
  }

  /** A line that `systemctl status` shows. */
  status(text: string): void {
    this.#send(`STATUS=${text}`);
  }

  /** A reload of the configuration begins; ready() ends it. */
  reloading(): void {
    this.#send(`RELOADING=1\nMONOTONIC_USEC=${Math.floor(Number(process.hrtime.bigint() / 1000n))}`);
  }

  /** The service is ending, and may need this long for it. */
  stopping(allowedMs: number): void {
    clearInterval(this.#timer);
    this.#send(`STOPPING=1\nEXTEND_TIMEOUT_USEC=${allowedMs * 1000}`);
  }

  #send(text: string): void {
    if (this.#socket === undefined || sendDatagram === undefined) return;
    try {
      sendDatagram(
        this.#socket,
        text.replace(/STATUS=([^\n]*)/, (_all, line: string) => `STATUS=${line.slice(0, 200)}`),
      );
    } catch (error) {
      this.#log.debug({ error }, `systemd did not take a notification: ${(error as Error).message}`);
    }
  }
}
