import { ERROR_CODES, type ErrorCode, LunetteError } from '../../formats/core/errors.ts';
import { BusError, BusService, NO_REPLY } from '../dbus/bus-service.ts';
import { codeOfBusName, LUNETTE_PATH, LUNETTE_SERVICE } from '../dbus/lunette-objects.ts';
import type { DaemonStatus } from './control.ts';

const IGNORED = { lost: () => undefined, back: () => undefined, refused: () => undefined };
/** An export ends when all requests in flight have: longer than that nobody should have to look at a terminal. */
const ANSWER_MS = 120_000;
const NOBODY = /\.(ServiceUnknown|NameHasNoOwner)$/;

/** The daemon that runs on this machine, as other programs reach it: over D-Bus. */
export class DaemonClient {
  readonly #bus: BusService;

  private constructor(bus: BusService) {
    this.#bus = bus;
  }

  /** @throws {LunetteError} UNAVAILABLE without a bus */
  static async connect(): Promise<DaemonClient> {
    return new DaemonClient(await BusService.connect(IGNORED, { answerMs: ANSWER_MS }));
  }

  /** @throws {LunetteError} UNAVAILABLE when no daemon runs, ACCESS for others than root */
  async status(): Promise<DaemonStatus> {
    const [json] = await this.#call('Status', '', []);
    return JSON.parse(String(json)) as DaemonStatus;
  }

  /** Ends an export of the configuration. @throws {LunetteError} as status(), and NOT_FOUND */
  async stop(name: string): Promise<void> {
    await this.#call('Stop', 's', [name]);
  }

  close(): void {
    this.#bus.close();
  }

  async #call(member: string, signature: string, values: readonly unknown[]): Promise<readonly unknown[]> {
    try {
      return await this.#bus.call(LUNETTE_SERVICE, LUNETTE_PATH, LUNETTE_SERVICE, member, signature, values);
    } catch (error) {
      throw explain(error as Error & { type?: unknown });
    }
  }
}

/** An error of the bus, or one of ours that came over it. */
function explain(error: Error & { type?: unknown }): LunetteError {
  if (error instanceof BusError && error.busName === NO_REPLY) {
    return new LunetteError('TIMEOUT', error.message, {
      help: 'The daemon may still be at it: lunette status, and journalctl -u lunette.',
      cause: error,
    });
  }
  const name = String(error.type ?? '');
  if (NOBODY.test(name)) {
    return new LunetteError('UNAVAILABLE', 'no lunette daemon runs on this machine', {
      help: 'Start it: systemctl start lunette, or lunette daemon.',
      cause: error,
    });
  }
  if (name.endsWith('.AccessDenied')) {
    return new LunetteError('ACCESS', 'only root may ask the daemon', { help: 'Run it with sudo.', cause: error });
  }
  const code = codeOfBusName(name);
  const known = code !== undefined && code in ERROR_CODES ? (code as ErrorCode) : 'IO';
  return new LunetteError(known, error.message, { cause: error });
}
