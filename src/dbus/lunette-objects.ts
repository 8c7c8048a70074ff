import { type ErrorCode, LunetteError } from '../../formats/core/errors.ts';
import { ACCESS_DENIED, BusError, type BusInterface, type BusMethod, type BusService, variant } from './bus-service.ts';

/** Our own name on the bus, and its interface. */
export const LUNETTE_SERVICE = 'org.lunette.Daemon1';
export const LUNETTE_PATH = '/org/lunette/Daemon1';
const ERROR = 'org.lunette.Error.';

/** Something that is served, in flat values. */
export type Facts = Readonly<Record<string, string | number | boolean>>;

/** What the daemon lets itself be asked and told. `name` is that of a device or an export. */
export interface DaemonControl {
  /** All there is to know, as JSON. */
  status(): string;
  list(): readonly Facts[];
  /** @throws {LunetteError} NOT_FOUND */
  statistics(name: string): Facts;
  flush(name: string): Promise<void>;
  /** @param size bytes */
  resize(name: string, size: number): Promise<void>;
  /** @returns its id */
  createSnapshot(name: string, snapshot: string): Promise<string>;
  deleteSnapshot(name: string, snapshot: string): Promise<void>;
  /** Ends an export of the configuration. */
  stop(name: string): Promise<void>;
  /** An error in one line. */
  describe(error: unknown): string;
}

/** `org.lunette.Error.NotFound` and its like. */
export function busNameOf(code: ErrorCode): string {
  const words = code.split('_').map((word) => word[0] + word.slice(1).toLowerCase());
  return ERROR + words.join('');
}

/** The code behind such a name; undefined when it is none. */
export function codeOfBusName(name: string): string | undefined {
  if (!name.startsWith(ERROR)) return undefined;
  return name
    .slice(ERROR.length)
    .replace(/(?!^)([A-Z])/g, '_$1')
    .toUpperCase();
}

/**
 * Puts the daemon's own interface on the bus. All of it is for root: what images are called, and what is in them, is nobody else's affair.
 *
 * @throws {LunetteError} as BusService.own
 */
export async function publishControl(bus: BusService, control: DaemonControl): Promise<void> {
  const method = (
    signature: string,
    out: string,
    names: readonly string[],
    act: (values: readonly unknown[]) => unknown,
  ): BusMethod => ({
    in: signature,
    out,
    names,
    call: async (values, caller) => {
      if (!(await bus.isRoot(caller))) throw new BusError(ACCESS_DENIED, 'only root may do this');
      try {
        const result = await act(values);
        return out === '' ? [] : [result];
      } catch (error) {
        if (error instanceof LunetteError) throw new BusError(busNameOf(error.code), control.describe(error));
        throw error;
      }
    },
  });
  const [text, texts] = [
    ([name]: readonly unknown[]) => String(name),
    ([first, second]: readonly unknown[]) => [String(first), String(second)] as const,
  ];
  const face: BusInterface = {
    methods: {
      Status: method('', 's', ['json'], () => control.status()),
      List: method('', 'aa{sv}', ['served'], () => control.list().map(variants)),
      Statistics: method('s', 'a{sv}', ['name', 'statistics'], (values) => variants(control.statistics(text(values)))),
      Flush: method('s', '', ['name'], (values) => control.flush(text(values))),
      Resize: method('st', '', ['name', 'size'], ([name, size]) => control.resize(String(name), Number(size))),
      CreateSnapshot: method('ss', 's', ['name', 'snapshot', 'id'], (values) =>
        control.createSnapshot(...texts(values)),
      ),
      DeleteSnapshot: method('ss', '', ['name', 'snapshot'], (values) => control.deleteSnapshot(...texts(values))),
      Stop: method('s', '', ['name'], (values) => control.stop(text(values))),
    },
  };
  bus.add(LUNETTE_PATH, LUNETTE_SERVICE, face);
  await bus.own(LUNETTE_SERVICE);
}

function variants(facts: Facts): Record<string, unknown> {
  const signature = (value: string | number | boolean): string =>
    typeof value === 'string' ? 's' : typeof value === 'boolean' ? 'b' : Number.isSafeInteger(value) ? 't' : 'd';
  return Object.fromEntries(Object.entries(facts).map(([name, value]) => [name, variant(signature(value), value)]));
}
