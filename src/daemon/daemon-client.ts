import { ERROR_CODES, type ErrorCode, LunetteError } from '../../formats/core/errors.ts';
import { BusService } from '../dbus/bus-service.ts';
import { codeOfBusName, LUNETTE_PATH, LUNETTE_SERVICE } from '../dbus/lunette-objects.ts';
import type { DaemonStatus } from './control.ts';

const IGNORED = { lost: () => undefined, back: () => undefined, refused: () => undefined };
const NOBODY = /\.(ServiceUnknown|NameHasNoOwner)$/;

/** The daemon that runs on this machine, as other programs reach it: over D-Bus. */
export class DaemonClient {
  readonly #bus: BusService;

  private constructor(bus: BusService) {
    this.#bus = bus;
  }

  /** @throws {LunetteError} UNAVAILABLE without a bus */
  static async connect(): Promise<DaemonClient> {
    return new DaemonClient(await BusService.connect(IGNORED));
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
