//! What a scene holds, as plain JSON beside its picture.

use serde::{Deserialize, Serialize};

use super::kind::{Colour, Kind, Place};
use super::scene::{Group, Scene};

/// All objects of one kind in an annotated image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnnotatedObject {
    /// What they are.
    pub object: Kind,
    /// Their colour.
    pub colour: Colour,
    /// How many there are.
    pub count: u8,
    /// The cells they stand in, one each.
    pub places: Vec<Place>,
}

/// A scene as annotation, groups in scene order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Annotation {
    /// One entry a kind.
    pub objects: Vec<AnnotatedObject>,
}

impl From<&Scene> for Annotation {
    fn from(scene: &Scene) -> Self {
        let objects = scene
            .groups
            .iter()
            .map(|group| AnnotatedObject {
                object: group.kind,
                colour: group.colour,
                count: group.count(),
                places: group.places.clone(),
            })
            .collect();
        Self { objects }
    }
}

impl From<&Annotation> for Scene {
    fn from(annotation: &Annotation) -> Self {
        let groups = annotation
            .objects
            .iter()
            .map(|object| Group { kind: object.object, colour: object.colour, places: object.places.clone() })
            .collect();
        Self { groups }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pocket::random::stream;
    use crate::pocket::world::Statistics;

    #[test]
    fn a_scene_survives_json() -> Result<(), serde_json::Error> {
        let scene = Scene::sample(Statistics::Balanced, &mut stream(0, "annotation test", 0));
        let json = serde_json::to_string(&Annotation::from(&scene))?;
        assert_eq!(Scene::from(&serde_json::from_str::<Annotation>(&json)?), scene);
        Ok(())
    }
}
