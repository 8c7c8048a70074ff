/**
 * One change to the configuration of the kernel's target. Paths are below the root of its configfs. What makes something has an opposite,
 * so that a list of steps can be taken back in reverse.
 */
export type Step =
  /** @param shared one that is there already is somebody else's: it is used, and left behind if it is not empty */
  | { readonly act: 'mkdir'; readonly path: string; readonly shared?: true }
  /** @param undo written when the step is taken back; @param optional kernels without this attribute are fine */
  | {
      readonly act: 'write';
      readonly path: string;
      readonly value: string;
      readonly undo?: string;
      readonly optional?: true;
    }
  | { readonly act: 'link'; readonly path: string; readonly target: string };

export function mkdir(path: string): Step {
  return { act: 'mkdir', path };
}

export function mkdirShared(path: string): Step {
  return { act: 'mkdir', path, shared: true };
}

export function write(path: string, value: string, undo?: string): Step {
  return undo === undefined ? { act: 'write', path, value } : { act: 'write', path, value, undo };
}

export function writeOptional(path: string, value: string): Step {
  return { act: 'write', path, value, optional: true };
}

export function link(path: string, target: string): Step {
  return { act: 'link', path, target };
}
